// What every .cu file includes: the tensors' dtypes, and the dtype that sums run in.
// It needs none of CUDA's headers, so NVRTC compiles it where only CuPy's wheel is installed, and in no time.

using int8 = signed char;
using uint8 = unsigned char;
using int64 = long long;  // every Python int arrives as one

template <bool CONDITION, typename Then, typename Else> struct either { using type = Then; };
template <typename Then, typename Else> struct either<false, Then, Else> { using type = Else; };

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

// x, which the compiler shall not take apart again to work out sums of its summands in a loop.
__device__ __forceinline__ int kept(int x) {
    asm("" : "+r"(x));
    return x;
}

// The dtype of a module's tensors is chosen when it is compiled: scalar, and accum for what is summed.
using scalar = DTYPE;
using accum = widened<scalar>::type;

__device__ __forceinline__ scalar narrow(accum x) { return narrowing<scalar>::round(x); }

template <typename T> __device__ __forceinline__ T relu(T x) { return x <= 0 ? T(0) : x; }  // NaN is not <= 0, so it stays

// Where the elements of up to five tensors of one shape lie, whatever their strides: dimensions in the memory order of
// tensor 0, the fastest last, and merged where every tensor allows it. elementwise.py makes it.
struct Layout {
    int64 elements, dims, flat;  // flat: one dimension in which every tensor is contiguous
    int64 size[25];              // torch's own kernels go to 25 dimensions
    int64 stride[5][25];

    template <typename Index, int N> __device__ __forceinline__ void locate(Index i, int64 (&offset)[N]) const {
        for (int t = 0; t < N; t++) offset[t] = 0;
        for (int d = int(dims) - 1; d >= 0; d--) {
            const Index rest = i / Index(size[d]);
            const int64 at = int64(i - rest * Index(size[d]));
            for (int t = 0; t < N; t++) offset[t] += at * stride[t][d];
            i = rest;
        }
    }

    // The offsets of element i in the first N tensors; 64-bit divisions cost several times as much, so only where needed.
    template <int N> __device__ __forceinline__ void operator()(int64 i, int64 (&offset)[N]) const {
        if (elements <= 0xffffffffll) locate(unsigned(i), offset);
        else locate(i, offset);
    }
};

// out = f(a, b, c), element by element. What f does not use is not loaded.
constexpr int THREADS = 256;                 // of an element-wise block
constexpr int VECTOR = 16 / sizeof(scalar);  // elements of one access of 16 bytes, and of one thread

template <typename Function>
__device__ __forceinline__ void elementwise(const scalar* a, const scalar* b, const scalar* c, scalar* out,
                                            const Layout& layout, Function f) {
    using Pack = pack<scalar, VECTOR>;
    const int64 block = int64(blockIdx.x) * (THREADS * VECTOR);
    const bool aligned = (size_t(a) | size_t(b) | size_t(c) | size_t(out)) % sizeof(Pack) == 0;
    const int64 first = block + threadIdx.x * VECTOR;
    if (layout.flat && aligned && first + VECTOR <= layout.elements) {
        const Pack as = *reinterpret_cast<const Pack*>(a + first);
        const Pack bs = *reinterpret_cast<const Pack*>(b + first);
        const Pack cs = *reinterpret_cast<const Pack*>(c + first);
        Pack result;
#pragma unroll
        for (int k = 0; k < VECTOR; k++) result.at[k] = narrow(f(widen(as.at[k]), widen(bs.at[k]), widen(cs.at[k])));
        *reinterpret_cast<Pack*>(out + first) = result;
        return;
    }
    // Neighbouring threads take neighbouring elements, so that at least `out` is written in whole sectors.
    // In a flat layout only the end comes here, a few elements for one thread.
    const bool end = layout.flat && aligned;
    const int64 start = end ? first : block + threadIdx.x;
    const int step = end ? 1 : THREADS;
    for (int k = 0; k < VECTOR && start + k * step < layout.elements; k++) {
        int64 offset[4];
        layout(start + k * step, offset);
        out[offset[0]] = narrow(f(widen(a[offset[1]]), widen(b[offset[2]]), widen(c[offset[3]])));
    }
}
