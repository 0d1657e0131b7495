// What launch.py puts in front of every .cu file: the tensors' dtypes, and the dtype that sums run in.
// It needs none of CUDA's headers, so NVRTC compiles it where only CuPy's wheel is installed, and in no time.

using int64 = long long;  // every Python int arrives as one

// float16 and bfloat16 are only stored: widen() what was loaded, compute in float, narrow() what is to be stored.
struct float16 { unsigned short bits; };
struct bfloat16 { unsigned short bits; };

template <typename T> struct widened { using type = T; };
template <> struct widened<float16> { using type = float; };
template <> struct widened<bfloat16> { using type = float; };

template <typename T> __device__ __forceinline__ T widen(T x) { return x; }

__device__ __forceinline__ float widen(float16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}

__device__ __forceinline__ float widen(bfloat16 x) { return __uint_as_float(unsigned(x.bits) << 16); }

template <typename T> struct narrowing {
    static __device__ __forceinline__ T round(T x) { return x; }
};
template <> struct narrowing<float16> {
    static __device__ __forceinline__ float16 round(float x) {
        float16 y;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
        return y;
    }
};
template <> struct narrowing<bfloat16> {
    static __device__ __forceinline__ bfloat16 round(float x) {
        bfloat16 y;
#if __CUDA_ARCH__ >= 800
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else
        // Adding just under half of the last place that stays, or half if that place is odd, rounds to nearest, ties to even.
        const unsigned bits = __float_as_uint(x);
        y.bits = x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
#endif
        return y;
    }
};

// N neighbours in one access; the address has to be a multiple of its size.
template <typename T, int N> struct alignas(sizeof(T) * N) pack { T at[N]; };

#define INFINITY __int_as_float(0x7f800000)

// The dtype of a module's tensors is chosen when it is compiled: scalar, and accum for what is summed.
using scalar = DTYPE;
using accum = widened<scalar>::type;

__device__ __forceinline__ scalar narrow(accum x) { return narrowing<scalar>::round(x); }
