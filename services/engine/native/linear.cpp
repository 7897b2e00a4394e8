// out = x · wᵀ + bias for weights that lie as torch keeps them, [n, k] by rows: bfloat16 with float32 sums, or int8 of
// which each row has a scale, with int32 sums and x quantized to int8 row by row as it comes.
//
// A tile of w is loaded where it lies and x, which is small, is repacked; so weights exist once, and few rows of x run at
// the speed at which memory gives the weights. Needs AMX. Sums run over k in one order, whatever the number of rows.

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels.h"
#include "tiles.h"

#ifdef BATON_AMX
namespace {

template <typename T>
inline void store_sixteen(T* to, __m512 values);

template <>
inline void store_sixteen(float* to, __m512 values) {
    _mm512_storeu_ps(to, values);
}

template <>
inline void store_sixteen(bfloat16* to, __m512 values) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(values));
}

// bfloat16 by bfloat16.
struct Plain {
    static constexpr bool IS_WHOLE = false;
    bfloat16* out;  // [rows, n]
    const bfloat16 *x, *w, *bias;  // [rows, k], [n, k], [n] or null
    int64_t rows, n, k;

    int64_t row_bytes() const { return 2 * k; }
    Plain part(int64_t first, int64_t count) const { return {out + first * n, x + first * k, w, bias, count, n, k}; }
    void prepare() {}
    void pack(int64_t first, uint32_t* packed) {
        const bfloat16* from[16];
        for (int64_t r = 0; r < 16; r++) from[r] = first + r < rows ? x + (first + r) * k : nullptr;
        pack_rows(from, k, packed);
    }
    void finish(const __m512* sums, int64_t row, int64_t column, int64_t count) const {
        const __m512 added = bias ? load_wide(bias + column) : _mm512_setzero_ps();
        for (int64_t r = 0; r < count; r++)
            store_sixteen(out + (row + r) * n + column, _mm512_add_ps(sums[r], added));
    }
};

// int8 by int8; w_scale [n] and one scale for each row of x make numbers of the sums.
template <typename T>
struct Quantized {
    static constexpr bool IS_WHOLE = true;
    T* out;
    const T* x;
    const int8_t* w;
    const float* w_scale;
    const T* bias;
    int64_t rows, n, k;
    float* x_scale = nullptr;

    int64_t row_bytes() const { return k; }
    Quantized part(int64_t first, int64_t count) const {
        return {out + first * n, x + first * k, w, w_scale, bias, count, n, k};
    }
    void prepare() {
        thread_local std::vector<float> scales;
        scales.resize(rows);
        x_scale = scales.data();
    }
    void pack(int64_t first, uint32_t* packed) {
        thread_local std::vector<int8_t, Aligned<int8_t>> numbers;
        numbers.resize(16 * k);
        const bfloat16* from[16];  // two numbers each
        for (int64_t r = 0; r < 16; r++) {
            from[r] = first + r < rows ? reinterpret_cast<const bfloat16*>(numbers.data() + r * k) : nullptr;
            if (from[r]) x_scale[first + r] = quantize(x + (first + r) * k, numbers.data() + r * k);
        }
        pack_rows(from, k / 2, packed);
    }
    // The scale of a row; NaN where an element is no number.
    float quantize(const T* from, int8_t* to) const {
        __m512 largest = _mm512_setzero_ps(), nothing = _mm512_setzero_ps();
        for (int64_t i = 0; i < k; i += 16) {
            const __m512 one = load_wide(from + i);
            largest = _mm512_max_ps(largest, _mm512_abs_ps(one));
            nothing = _mm512_fmadd_ps(one, _mm512_setzero_ps(), nothing);
        }
        const float scale = _mm512_reduce_max_ps(largest) / 127.0f;
        const __m512 divisor = _mm512_set1_ps(scale > 0 ? scale : 1.0f);
        for (int64_t i = 0; i < k; i += 16) {
            const __m512i whole = _mm512_cvtps_epi32(_mm512_div_ps(load_wide(from + i), divisor));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm512_cvtsepi32_epi8(whole));
        }
        return scale + _mm512_reduce_add_ps(nothing);
    }
    void finish(const __m512* sums, int64_t row, int64_t column, int64_t count) const {
        const __m512 scale = _mm512_loadu_ps(w_scale + column);
        const __m512 added = bias ? load_wide(bias + column) : _mm512_setzero_ps();
        for (int64_t r = 0; r < count; r++) {
            const __m512 sum = _mm512_cvtepi32_ps(_mm512_castps_si512(sums[r]));
            const __m512 scaled = _mm512_mul_ps(_mm512_mul_ps(sum, _mm512_set1_ps(x_scale[row + r])), scale);
            store_sixteen(out + (row + r) * n + column, _mm512_add_ps(scaled, added));
        }
    }
};

// The sums of a tile [16 columns][16 rows] to out.
template <typename P>
void finish_tile(const P& p, const float* sums, int64_t row, int64_t column) {
    __m512 rows[16];
    for (int i = 0; i < 16; i++) rows[i] = _mm512_load_ps(sums + 16 * i);
    transpose(rows);
    p.finish(rows, row, column, std::min<int64_t>(16, p.rows - row));
}

// Two tiles of w for each 64 bytes of its rows: where they begin, how far apart, and their own rows' distance.
struct Columns {
    const char* at;
    int64_t second, step, stride;
};

// The numbers of tiles are parts of instructions, so this cannot be a function.
#define BATON_MULTIPLY_TILES(P, sums, w, x) \
    if constexpr (P::IS_WHOLE)              \
        _tile_dpbssd(sums, w, x);           \
    else                                    \
        _tile_dpbf16ps(sums, w, x)

// Thirty-two columns with one or two packed groups of sixteen rows, over some 64 bytes of w's rows, added to `sums` or
// beginning anew. Tiles 0-3 are sums, 4-5 w, 6-7 x.
template <int GROUPS, typename P>
void add_tiles(const Columns& w, const uint32_t* x, int64_t to_second_group, int64_t steps, bool begin, float* sums) {
    if (begin) {
        _tile_zero(0);
        _tile_zero(1);
        if (GROUPS == 2) _tile_zero(2);
        if (GROUPS == 2) _tile_zero(3);
    } else {
        _tile_loadd(0, sums, 64);
        _tile_loadd(1, sums + TILE, 64);
        if (GROUPS == 2) _tile_loadd(2, sums + 2 * TILE, 64);
        if (GROUPS == 2) _tile_loadd(3, sums + 3 * TILE, 64);
    }
    for (int64_t k = 0; k < steps; k++) {
        _tile_loadd(4, w.at + k * w.step, w.stride);
        _tile_loadd(6, x + k * TILE, 64);
        BATON_MULTIPLY_TILES(P, 0, 4, 6);
        _tile_loadd(5, w.at + w.second + k * w.step, w.stride);
        BATON_MULTIPLY_TILES(P, 1, 5, 6);
        if (GROUPS == 2) {
            _tile_loadd(7, x + to_second_group + k * TILE, 64);
            BATON_MULTIPLY_TILES(P, 2, 4, 7);
            BATON_MULTIPLY_TILES(P, 3, 5, 7);
        }
    }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + TILE, 64);
    if (GROUPS == 2) _tile_stored(2, sums + 2 * TILE, 64);
    if (GROUPS == 2) _tile_stored(3, sums + 3 * TILE, 64);
}

// Tiles end to end: where many rows pass, they come from the cache without conflicts.
Columns pack_columns(const char* w, int64_t row_bytes, int64_t second, int64_t steps, char* packed) {
    char* to = packed;
    for (int64_t k = 0; k < 64 * steps; k += 64)
        for (int64_t half = 0; half < 2; half++)
            for (int64_t i = 0; i < 16; i++, to += 64)
                _mm512_store_si512(to, _mm512_loadu_si512(w + (half * second + i) * row_bytes + k));
    return {packed, 1024, 2048, 64};
}

// Tiles of w for so many steps stay in the nearest cache while all rows of x pass.
constexpr int64_t MOST_STEPS = 12;

template <typename P>
struct Multiplication {
    P p;
    const uint32_t* x;  // packed, [groups][steps] tiles
    int64_t groups, steps, second;
    char* packed_w;
    float* sums;  // [groups] pairs of tiles

    // Few rows: w is read where it lies, once.
    void few(int64_t column) const {
        const Columns w{at(column), second * p.row_bytes(), 64, p.row_bytes()};
        over_groups(w, 0, steps);
        finish(column);
    }
    void many(int64_t column) const {
        for (int64_t k = 0; k < steps; k += MOST_STEPS) {
            const int64_t count = std::min(MOST_STEPS, steps - k);
            over_groups(pack_columns(at(column) + 64 * k, p.row_bytes(), second, count, packed_w), k, count);
        }
        finish(column);
    }

  private:
    const char* at(int64_t column) const { return reinterpret_cast<const char*>(p.w) + column * p.row_bytes(); }

    void over_groups(const Columns& w, int64_t first, int64_t count) const {
        int64_t g = 0;
        const uint32_t* from = x + first * TILE;
        for (; g + 2 <= groups; g += 2)
            add_tiles<2, P>(w, from + g * steps * TILE, steps * TILE, count, first == 0, sums + 2 * g * TILE);
        if (g < groups) add_tiles<1, P>(w, from + g * steps * TILE, 0, count, first == 0, sums + 2 * g * TILE);
    }
    void finish(int64_t column) const {
        for (int64_t g = 0; g < groups; g++) {
            finish_tile(p, sums + 2 * g * TILE, 16 * g, column);
            finish_tile(p, sums + (2 * g + 1) * TILE, 16 * g, column + second);
        }
    }
};

template <typename P>
void multiply_part(P p, int threads) {
    const int64_t groups = (p.rows + 15) / 16, steps = p.row_bytes() / 64, blocks = (p.n + 31) / 32;
    thread_local std::vector<uint32_t, Aligned<uint32_t>> packed_x;
    packed_x.resize(groups * steps * TILE);
    p.prepare();
    uint32_t* x = packed_x.data();
#pragma omp parallel num_threads(threads) firstprivate(p)
    {
#pragma omp for schedule(static)
        for (int64_t g = 0; g < groups; g++) p.pack(16 * g, x + g * steps * TILE);
        const TileShapes shapes;
        _tile_loadconfig(&shapes);
        thread_local std::vector<char, Aligned<char>> packed_w;
        thread_local std::vector<float, Aligned<float>> sums;
        packed_w.resize(MOST_STEPS * 2048);
        sums.resize(2 * groups * TILE);
        const Multiplication<P> work{p, x, groups, steps, std::min<int64_t>(16, p.n - 16), packed_w.data(), sums.data()};
#pragma omp for schedule(static)
        for (int64_t block = 0; block < blocks; block++) {
            // The last block may overlap the one before it, and both write the same.
            const int64_t column = std::max<int64_t>(0, std::min(block * 32, p.n - 32));
            groups > 2 ? work.many(column) : work.few(column);
        }
        _tile_release();
    }
}

// Rows of x whose packed form stays in a core's own cache.
constexpr int64_t MOST_ROWS = 512;

template <typename P>
void multiply(const P& p, int threads) {
    for (int64_t first = 0; first < p.rows; first += MOST_ROWS)
        multiply_part(p.part(first, std::min(MOST_ROWS, p.rows - first)), threads);
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
