// What is multiplied and how sums become numbers: bfloat16 by bfloat16, or int8 by int8 with scales.
//
// Weights lie as tiles, in the order in which they are read: [panels][steps][2][16 columns][64 bytes]. A panel is 32
// columns of the product; the last one may overlap the one before it, and both write the same.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels.h"
#include "tiles.h"

#ifdef BATON_AMX
namespace {

inline void norm_row(bfloat16* out, const bfloat16* x, const float* weight, int64_t width, float eps) {
    norm_row_bfloat16(out, x, weight, width, eps);
}

inline void norm_row(float* out, const float* x, const float* weight, int64_t width, float eps) {
    norm_row_float32(out, x, weight, width, eps);
}

// Sixteen numbers to where they belong.
template <bool ADDS>
inline void put(float* to, __m512 numbers) {
    _mm512_storeu_ps(to, ADDS ? _mm512_add_ps(_mm512_loadu_ps(to), numbers) : numbers);
}

template <bool ADDS>
inline void put(bfloat16* to, __m256 numbers) {
    if (ADDS) numbers = (__m256)_mm512_cvtneps_pbh(_mm512_add_ps(load_wide(to), widen((__m256i)numbers)));
    _mm256_storeu_ps(reinterpret_cast<float*>(to), numbers);
}

// What both kinds share. With `norm` [k] each row of x is x / rms(x) * norm.
template <typename T>
struct Operands {
    using Number = T;
    T* out;  // [rows, columns()]
    const T *x, *bias;  // [rows, k]; [n] or null
    const float* norm;  // or null
    float eps;
    int64_t rows, n, k;
    Into into;

    int64_t columns() const { return into == Into::GATED ? n / 2 : n; }
    // Row r of x, in `normed` where it had to be computed.
    const T* row(int64_t r, T* normed) const {
        if (!norm) return x + r * k;
        norm_row(normed, x + r * k, norm, k, eps);
        return normed;
    }
};

template <typename P>
P part_of(P p, int64_t first, int64_t count) {
    p.out += first * p.columns(), p.x += first * p.k, p.rows = count;
    return p;
}

// bfloat16 by bfloat16.
struct Plain : Operands<bfloat16> {
    static constexpr bool IS_WHOLE = false;
    const bfloat16* w;  // tiles

    int64_t row_bytes() const { return 2 * k; }
    void prepare() {}
    // Where sixteen rows of x lie, as pairs of bytes; null beyond the last. Valid until the next call of a thread.
    void find_rows(int64_t first, const bfloat16** found) {
        thread_local std::vector<bfloat16, Aligned<bfloat16>> normed;
        if (norm) normed.resize(16 * k);
        for (int64_t r = 0; r < 16; r++) found[r] = first + r < rows ? row(first + r, normed.data() + r * k) : nullptr;
    }
    // Sixteen rows' sums of a column.
    __m512 numbers(const float* sums, int64_t, int64_t column) const {
        const __m512 found = _mm512_load_ps(sums);
        return bias ? _mm512_add_ps(found, _mm512_set1_ps(widen(bias[column]))) : found;
    }
};

// int8 by int8; w_scale [n] and one scale for each row of x make numbers of the sums.
template <typename T>
struct Quantized : Operands<T> {
    static constexpr bool IS_WHOLE = true;
    using Operands<T>::rows, Operands<T>::k, Operands<T>::bias;
    const int8_t* w;
    const float* w_scale;
    float* x_scale = nullptr;

    int64_t row_bytes() const { return k; }
    void prepare() {
        thread_local std::vector<float> scales;
        scales.resize((rows + 15) / 16 * 16);
        x_scale = scales.data();
    }
    void find_rows(int64_t first, const bfloat16** found) {
        thread_local std::vector<int8_t, Aligned<int8_t>> whole;
        thread_local std::vector<T, Aligned<T>> normed;
        whole.resize(16 * k), normed.resize(k);
        for (int64_t r = 0; r < 16; r++) {
            found[r] = first + r < rows ? reinterpret_cast<const bfloat16*>(whole.data() + r * k) : nullptr;
            if (found[r]) x_scale[first + r] = quantize(this->row(first + r, normed.data()), whole.data() + r * k);
        }
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
    __m512 numbers(const float* sums, int64_t row, int64_t column) const {
        const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums));
        const __m512 scaled = _mm512_mul_ps(_mm512_mul_ps(sum, _mm512_loadu_ps(x_scale + row)),
                                            _mm512_set1_ps(w_scale[column]));
        return _mm512_add_ps(scaled, _mm512_set1_ps(bias ? widen(bias[column]) : 0.0f));
    }
};

// Where the panels of a product lie.
template <typename P>
struct Panels {
    const P& p;

    int64_t count() const { return (p.n + 31) / 32; }
    int64_t steps() const { return p.row_bytes() / 64; }
    int64_t bytes() const { return 2048 * steps(); }
    const char* at(int64_t panel) const { return reinterpret_cast<const char*>(p.w) + panel * bytes(); }
    int64_t column(int64_t panel) const { return std::max<int64_t>(0, std::min(32 * panel, p.n - 32)); }
    // From the first sixteen columns of a panel to the others.
    int64_t second() const { return std::min<int64_t>(16, p.n - 16); }
};

// Sums of sixteen rows as two tiles [16 columns][16 rows], to the rows' columns from `column` and from `column + second`.
template <bool ADDS, typename P>
void finish_columns(const P& p, const float* sums, int64_t row, int64_t column, int64_t second) {
    const int64_t count = std::min<int64_t>(16, p.rows - row);
    __m512 turned[16];
    if constexpr (sizeof(typename P::Number) == 4) {
        for (int half = 0; half < 2; half++) {
            for (int i = 0; i < 16; i++) turned[i] = p.numbers(sums + half * TILE + 16 * i, row, column + half * second + i);
            transpose(turned);
            for (int64_t r = 0; r < count; r++) put<ADDS>(p.out + (row + r) * p.n + column + half * second, turned[r]);
        }
    } else {
        for (int i = 0; i < 16; i++) {
            const int64_t from = column + (i < 8 ? 2 * i : second + 2 * i - 16);
            turned[i] = join_pairs(p.numbers(sums + 32 * i, row, from), p.numbers(sums + 32 * i + 16, row, from + 1));
        }
        transpose(turned);
        for (int64_t r = 0; r < count; r++) {
            auto* to = p.out + (row + r) * p.n + column;
            put<ADDS>(to, _mm512_castps512_ps256(turned[r]));
            put<ADDS>(to + second, _mm512_extractf32x8_ps(turned[r], 1));
        }
    }
}

// Likewise of a panel with a gate in the first tile: silu(gate) * the second, in half as many columns.
template <typename P>
void finish_gated(const P& p, const float* sums, int64_t row, int64_t column) {
    const int64_t count = std::min<int64_t>(16, p.rows - row);
    using T = typename P::Number;
    __m512 turned[16];
    for (int i = 0; i < 16; i++) {
        const __m512 gate = rounded<T>(p.numbers(sums + 16 * i, row, column + i));
        turned[i] = silu_gate(gate, rounded<T>(p.numbers(sums + TILE + 16 * i, row, column + 16 + i)));
    }
    if constexpr (sizeof(T) == 2)
        for (int i = 0; i < 16; i++) turned[i] = i < 8 ? join_pairs(turned[2 * i], turned[2 * i + 1]) : _mm512_setzero_ps();
    transpose(turned);
    for (int64_t r = 0; r < count; r++) {
        T* to = p.out + (row + r) * p.n / 2 + column / 2;
        if constexpr (sizeof(T) == 2)
            put<false>(to, _mm512_castps512_ps256(turned[r]));
        else
            put<false>(to, turned[r]);
    }
}

// Not inlined: sums may be reordered where it is, and a row's bits must not depend on who called.
template <typename P>
__attribute__((noinline)) void finish_tiles(const P& p, const float* sums, int64_t row, int64_t column, int64_t second) {
    if (p.into == Into::GATED) return finish_gated(p, sums, row, column);
    if (p.into == Into::ADDED) return finish_columns<true>(p, sums, row, column, second);
    finish_columns<false>(p, sums, row, column, second);
}

}  // namespace
#endif
