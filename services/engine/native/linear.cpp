// out = x · wᵀ + bias for weights that lie as torch keeps them, [N, K] by rows, in bfloat16 with float32 sums.
//
// A tile of w is loaded where it lies and x, which is small, is repacked; so weights exist once, and few rows of x run at
// the speed at which memory gives the weights. Needs AMX. Sums run over K in one order, whatever the number of rows.

#include <algorithm>
#include <vector>

#include "tiles.h"

namespace {

struct Product {
    bfloat16* out;         // [rows, n], out_stride apart
    const bfloat16* x;     // [rows, k], x_stride apart
    const bfloat16* w;     // [n, k]
    const bfloat16* bias;  // [n] or null
    int64_t rows, n, k, x_stride, out_stride;
};

#ifdef BATON_AMX
// Sums [16 columns][16 rows] of one tile to out.
void unpack_tile(const Product& p, const float* sums, int64_t row, int64_t column) {
    __m512 rows[16];
    for (int i = 0; i < 16; i++) rows[i] = _mm512_load_ps(sums + 16 * i);
    transpose(rows);
    const __m512 bias = p.bias ? load_wide(p.bias + column) : _mm512_setzero_ps();
    const int64_t count = std::min<int64_t>(16, p.rows - row);
    for (int64_t r = 0; r < count; r++)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p.out + (row + r) * p.out_stride + column),
                            (__m256i)_mm512_cvtneps_pbh(_mm512_add_ps(rows[r], bias)));
}

// Thirty-two columns with one or two packed groups of sixteen rows. Tiles 0-3 are sums, 4-5 w, 6-7 x.
template <int GROUPS>
void tile_block(const Product& p, const bfloat16* w, int64_t w_second, int64_t w_stride, int64_t w_step,
                const uint32_t* x, int64_t row, int64_t column, int64_t second) {
    const int64_t group = p.k / 32 * TILE;
    _tile_zero(0);
    _tile_zero(1);
    if (GROUPS == 2) _tile_zero(2);
    if (GROUPS == 2) _tile_zero(3);
    for (int64_t k = 0; k < p.k / 32; k++) {
        _tile_loadd(4, w + k * w_step, w_stride);
        _tile_loadd(6, x + k * TILE, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, w + w_second + k * w_step, w_stride);
        _tile_dpbf16ps(1, 5, 6);
        if (GROUPS == 2) {
            _tile_loadd(7, x + group + k * TILE, 64);
            _tile_dpbf16ps(2, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    alignas(64) float sums[4][TILE];
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    if (GROUPS == 2) _tile_stored(2, sums[2], 64);
    if (GROUPS == 2) _tile_stored(3, sums[3], 64);
    for (int g = 0; g < GROUPS; g++) {
        unpack_tile(p, sums[2 * g], row + 16 * g, column);
        unpack_tile(p, sums[2 * g + 1], row + 16 * g, column + second);
    }
}

// Two tiles of w for each step of k, end to end: where many rows pass, they come from the cache without conflicts.
void pack_columns(const Product& p, int64_t column, int64_t second, bfloat16* packed) {
    for (int64_t k = 0; k < p.k; k += 32)
        for (int64_t half = 0; half < 2; half++)
            for (int64_t i = 0; i < 16; i++, packed += 32)
                _mm512_store_si512(packed, _mm512_loadu_si512(p.w + (column + half * second + i) * p.k + k));
}

void multiply(const Product& p, int threads) {
    const int64_t groups = (p.rows + 15) / 16, group = p.k / 32 * TILE, blocks = (p.n + 31) / 32;
    thread_local std::vector<uint32_t, Aligned<uint32_t>> packed_x;
    packed_x.resize(groups * group);
    uint32_t* x = packed_x.data();
    const bool many = groups > 2;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t g = 0; g < groups; g++) {
            const bfloat16* rows[16];
            for (int64_t r = 0; r < 16; r++)
                rows[r] = 16 * g + r < p.rows ? p.x + (16 * g + r) * p.x_stride : nullptr;
            pack_rows(rows, p.k, x + g * group);
        }
        const TileShapes shapes;
        _tile_loadconfig(&shapes);
        thread_local std::vector<bfloat16, Aligned<bfloat16>> packed_w;
        if (many) packed_w.resize(p.k * 32);
#pragma omp for schedule(static)
        for (int64_t block = 0; block < blocks; block++) {
            // The last block may overlap the one before it, and both write the same.
            const int64_t column = std::max<int64_t>(0, std::min(block * 32, p.n - 32));
            const int64_t second = std::min<int64_t>(16, p.n - 16);
            if (many) pack_columns(p, column, second, packed_w.data());
            const bfloat16* w = many ? packed_w.data() : p.w + column * p.k;
            const int64_t next = many ? 512 : second * p.k, stride = many ? 64 : p.k * 2, step = many ? 1024 : 32;
            int64_t g = 0;
            for (; g + 2 <= groups; g += 2)
                tile_block<2>(p, w, next, stride, step, x + g * group, 16 * g, column, second);
            if (g < groups) tile_block<1>(p, w, next, stride, step, x + g * group, 16 * g, column, second);
        }
        _tile_release();
    }
}
#endif

}  // namespace

// Whether this machine and its kernel let the process use AMX.
extern "C" int can_linear_bfloat16() {
#ifdef BATON_AMX
    return may_use_tiles();
#else
    return 0;
#endif
}

// Where `can_linear_bfloat16`; n >= 16, k a multiple of 32.
extern "C" void linear_bfloat16(bfloat16* out, const bfloat16* x, const bfloat16* w, const bfloat16* bias, int64_t rows,
                                int64_t n, int64_t k, int64_t x_stride, int64_t out_stride, int threads) {
#ifdef BATON_AMX
    multiply({out, x, w, bias, rows, n, k, x_stride, out_stride}, threads);
#endif
}
