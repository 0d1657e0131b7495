// k / divisor: one multiplication.
struct Divisor {
    unsigned divisor, multiplier, shift;

    __device__ __forceinline__ unsigned quotient(unsigned k) const { return __umulhi(2 * k, multiplier) >> shift; }

    // For k * divisor < 2^31; those for k < 2^31 come from the host.
    static __device__ __forceinline__ Divisor small(unsigned divisor) { return {divisor, 0x7fffffffu / divisor + 1, 0}; }
};
