// out = x · wᵀ + bias for weights that lie as torch keeps them, [n, k] by rows: bfloat16 with float32 sums, or int8 of
// which each row has a scale, with int32 sums and x quantized to int8 row by row as it comes.
//
// Up to FEW_ROWS, a tile of w is loaded where it lies and x is repacked; so weights exist once, and a product of very few
// rows runs at the speed at which memory gives the weights. More rows are in many_rows.h. Needs AMX. Sums run over k in one
// order, whatever the number of rows.

#include "kernels.h"
#include "many_rows.h"

#ifdef BATON_AMX
namespace {

// Thirty-two columns with one or two packed groups of sixteen rows, to `sums`. Tiles 0-3 are sums, 4-5 w, 6-7 x.
template <int GROUPS, typename P>
void multiply_tiles(const char* w, int64_t second, int64_t stride, const uint32_t* x, int64_t steps, float* sums) {
    _tile_zero(0);
    _tile_zero(1);
    if (GROUPS == 2) _tile_zero(2);
    if (GROUPS == 2) _tile_zero(3);
    for (int64_t k = 0; k < steps; k++) {
        _tile_loadd(4, w + 64 * k, stride);
        _tile_loadd(6, x + k * TILE, 64);
        BATON_MULTIPLY_TILES(P, 0, 4, 6);
        _tile_loadd(5, w + second * stride + 64 * k, stride);
        BATON_MULTIPLY_TILES(P, 1, 5, 6);
        if (GROUPS == 2) {
            _tile_loadd(7, x + (steps + k) * TILE, 64);
            BATON_MULTIPLY_TILES(P, 2, 4, 7);
            BATON_MULTIPLY_TILES(P, 3, 5, 7);
        }
    }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + TILE, 64);
    if (GROUPS == 2) _tile_stored(2, sums + 2 * TILE, 64);
    if (GROUPS == 2) _tile_stored(3, sums + 3 * TILE, 64);
}

// Up to FEW_ROWS: from the second pair of groups on, w comes from the cache.
template <typename P>
void multiply_few(P p, int threads) {
    const int64_t groups = (p.rows + 15) / 16, steps = p.row_bytes() / 64, blocks = (p.n + 31) / 32;
    const int64_t second = std::min<int64_t>(16, p.n - 16);
    thread_local std::vector<uint32_t, Aligned<uint32_t>> packed_x;
    packed_x.resize(groups * steps * TILE);
    p.prepare();
    uint32_t* x = packed_x.data();
#pragma omp parallel num_threads(threads) firstprivate(p)
    {
#pragma omp for schedule(static)
        for (int64_t g = 0; g < groups; g++) {
            const bfloat16* rows[16];
            p.find_rows(16 * g, rows);
            pack_rows(rows, p.row_bytes() / 2, x + g * steps * TILE);
        }
        const TileShapes shapes;
        _tile_loadconfig(&shapes);
        alignas(64) float sums[4 * TILE];
#pragma omp for schedule(static)
        for (int64_t block = 0; block < blocks; block++) {
            // The last block may overlap the one before it, and both write the same.
            const int64_t column = std::max<int64_t>(0, std::min(block * 32, p.n - 32));
            const char* w = reinterpret_cast<const char*>(p.w) + column * p.row_bytes();
            for (int64_t g = 0; g < groups; g += 2) {
                const int64_t count = std::min<int64_t>(2, groups - g);
                const auto multiply = count == 2 ? multiply_tiles<2, P> : multiply_tiles<1, P>;
                multiply(w, second, p.row_bytes(), x + g * steps * TILE, steps, sums);
                for (int64_t i = 0; i < count; i++)
                    finish_tiles(p, sums + 2 * i * TILE, 16 * (g + i), column, second);
            }
        }
        _tile_release();
    }
}

constexpr int64_t FEW_ROWS = 256, MOST_ROWS = 2048;

// More pass in equal parts, which bounds what is packed.
template <typename P>
void multiply(const P& p, int threads) {
    if (p.rows <= FEW_ROWS) return multiply_few(p, threads);
    const int64_t parts = (p.rows + MOST_ROWS - 1) / MOST_ROWS, size = ((p.rows + parts - 1) / parts + 31) / 32 * 32;
    for (int64_t first = 0; first < p.rows; first += size)
        multiply_many(p.part(first, std::min(size, p.rows - first)), threads);
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
extern "C" void linear_bfloat16(bfloat16* out, const bfloat16* x, const bfloat16* w, const bfloat16* bias, int64_t rows,
                                int64_t n, int64_t k, int threads) {
    BATON_MULTIPLY(Plain{out, x, w, bias, rows, n, k});
}

// k a multiple of 64.
extern "C" void quantized_linear_bfloat16(bfloat16* out, const bfloat16* x, const int8_t* w, const float* scale,
                                          const bfloat16* bias, int64_t rows, int64_t n, int64_t k, int threads) {
    BATON_MULTIPLY(Quantized<bfloat16>{out, x, w, scale, bias, rows, n, k});
}

extern "C" void quantized_linear_float32(float* out, const float* x, const int8_t* w, const float* scale,
                                         const float* bias, int64_t rows, int64_t n, int64_t k, int threads) {
    BATON_MULTIPLY(Quantized<float>{out, x, w, scale, bias, rows, n, k});
}
