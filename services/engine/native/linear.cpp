// out = x · wᵀ + bias for weights that lie as tiles (operands.h): bfloat16 with float32 sums, or int8 of which each row
// has a scale, with int32 sums and x quantized to int8 row by row as it comes. Rows may be normed on their way, and the
// product be added or gated (Into).
// Needs AMX.

#include "kernels.h"
#include "product.h"

#ifdef BATON_AMX
namespace {

constexpr int64_t MOST_ROWS = 2048;

// More pass in equal parts, which bounds what is packed.
template <typename P>
void multiply(const P& p, int threads) {
    const int64_t parts = (p.rows + MOST_ROWS - 1) / MOST_ROWS, size = ((p.rows + parts - 1) / parts + 31) / 32 * 32;
    for (int64_t first = 0; first < p.rows; first += size)
        multiply_part(part_of(p, first, std::min(size, p.rows - first)), threads);
}

}  // namespace
#endif

// Whether this machine and its kernel let the process use AMX.
extern "C" int can_multiply() {
#ifdef BATON_AMX
    return may_use_tiles();
#else
    return 0;
#endif
}

// All where `can_multiply`, with n >= 16.
#ifdef BATON_AMX
#define BATON_MULTIPLY(...) multiply(__VA_ARGS__, threads)
#else
#define BATON_MULTIPLY(...) (void)threads
#endif

// k a multiple of 32.
extern "C" void linear_bfloat16(bfloat16* out, const bfloat16* x, const bfloat16* w, const bfloat16* bias,
                                const float* norm, float eps, int64_t rows, int64_t n, int64_t k, Into into,
                                int threads) {
    BATON_MULTIPLY(Plain{{out, x, bias, norm, eps, rows, n, k, into}, w});
}

// k a multiple of 64.
#define BATON_QUANTIZED_LINEAR(SUFFIX, T)                                                                             \
    extern "C" void quantized_linear_##SUFFIX(T* out, const T* x, const int8_t* w, const float* scale, const T* bias, \
                                              const float* norm, float eps, int64_t rows, int64_t n, int64_t k,       \
                                              Into into, int threads) {                                               \
        BATON_MULTIPLY(Quantized<T>{{out, x, bias, norm, eps, rows, n, k, into}, w, scale});                          \
    }

BATON_QUANTIZED_LINEAR(bfloat16, bfloat16)
BATON_QUANTIZED_LINEAR(float32, float)
