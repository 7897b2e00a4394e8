// Sixteen float32 at a time, where the processor has AVX-512 with bfloat16.
#pragma once

#include <cstdlib>
#include <new>

#include "numbers.h"

#if defined(__AVX512BF16__) && defined(__AVX512F__)
#include <immintrin.h>
#define BATON_DOT_BF16 1
#endif

namespace {

// Allocates by cache lines and leaves new elements as they are.
template <typename T>
struct Aligned {
    using value_type = T;
    Aligned() = default;
    template <typename U>
    Aligned(const Aligned<U>&) {}
    T* allocate(size_t count) {
        void* found = std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64);
        if (!found) throw std::bad_alloc();
        return static_cast<T*>(found);
    }
    void deallocate(T* at, size_t) { std::free(at); }
    template <typename U>
    void construct(U*) {}
    template <typename U>
    bool operator==(const Aligned<U>&) const { return true; }
    template <typename U>
    bool operator!=(const Aligned<U>&) const { return false; }
};

#ifdef BATON_DOT_BF16
inline __m512 load_wide(const float* at) { return _mm512_loadu_ps(at); }

// Sixteen bfloat16.
inline __m512 widen(__m256i numbers) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(numbers), 16));
}

inline __m512 load_wide(const bfloat16* at) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
}

// As numbers of T are.
template <typename T>
inline __m512 rounded(__m512 numbers) {
    if constexpr (sizeof(T) == 2) return widen((__m256i)_mm512_cvtneps_pbh(numbers));
    return numbers;
}

// Two vectors as bfloat16, element by element side by side.
inline __m512 join_pairs(__m512 low, __m512 high) {
    static constexpr uint16_t ORDER[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                           8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i one_by_one = (__m512i)_mm512_cvtne2ps_pbh(high, low);
    return _mm512_castsi512_ps(_mm512_permutexvar_epi16(_mm512_loadu_si512(ORDER), one_by_one));
}

// e^x for x <= 0, within 4e-6 of it, and 0 below -87; NaN stays NaN.
inline __m512 exp_negative(__m512 x) {
    constexpr int NEAREST = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;  // and no reordering by the compiler
    const __m512 shift = _mm512_set1_ps(12582912.0f);  // 1.5 * 2^23: what is added to it loses its fraction
    const __mmask16 counts = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_NLT_UQ);  // NaN does
    const __m512 power = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
    const __m512 whole = _mm512_add_round_ps(power, shift, NEAREST);
    const __m512 rest = _mm512_sub_ps(power, _mm512_sub_round_ps(whole, shift, NEAREST));
    __m512 poly = _mm512_set1_ps(9.618437e-3f);  // of 2^rest
    for (float next : {5.5503325e-2f, 2.4022648e-1f, 6.9314719e-1f, 1.0f})
        poly = _mm512_fmadd_ps(poly, rest, _mm512_set1_ps(next));
    const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(whole), 23);
    return _mm512_castsi512_ps(_mm512_maskz_add_epi32(counts, _mm512_castps_si512(poly), exponent));
}

// silu(gate) * up
inline __m512 silu_gate(__m512 gate, __m512 up) {
    const __m512 one = _mm512_set1_ps(1.0f), e = exp_negative(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_abs_ps(gate)));
    const __mmask16 is_negative = _mm512_cmp_ps_mask(gate, _mm512_setzero_ps(), _CMP_LT_OQ);
    const __m512 top = _mm512_mul_ps(gate, _mm512_mask_mov_ps(one, is_negative, e));
    return _mm512_mul_ps(_mm512_div_ps(top, _mm512_add_ps(one, e)), up);
}

// Joins the elements of each of 16 vectors by an operation on two, in the order of the vectors.
template <typename Join>
inline __m512 join_each(const __m512* rows, Join join) {
    __m512 pairs[8], fours[4], halves[2];
    for (int i = 0; i < 8; i++)
        pairs[i] = join(_mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]),
                        _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]));
    for (int i = 0; i < 4; i++) {
        const __m512d low = _mm512_castps_pd(pairs[2 * i]), high = _mm512_castps_pd(pairs[2 * i + 1]);
        fours[i] = join(_mm512_castpd_ps(_mm512_unpacklo_pd(low, high)), _mm512_castpd_ps(_mm512_unpackhi_pd(low, high)));
    }
    for (int i = 0; i < 2; i++)
        halves[i] = join(_mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0x88),
                         _mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0xdd));
    return join(_mm512_shuffle_f32x4(halves[0], halves[1], 0x88), _mm512_shuffle_f32x4(halves[0], halves[1], 0xdd));
}

inline __m512 sum_each(const __m512* rows) {
    return join_each(rows, [](__m512 a, __m512 b) { return _mm512_add_ps(a, b); });
}

inline __m512 largest_each(const __m512* rows) {
    return join_each(rows, [](__m512 a, __m512 b) { return _mm512_max_ps(a, b); });
}

// 16 x 16, in place.
inline void transpose(__m512* m) {
    __m512 t[16];
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_ps(m[2 * i], m[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_ps(m[2 * i], m[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 2; j++) {
            const __m512d a = _mm512_castps_pd(t[4 * i + j]), b = _mm512_castps_pd(t[4 * i + 2 + j]);
            m[4 * i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            m[4 * i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_f32x4(m[i], m[4 + i], 0x88);
        t[4 + i] = _mm512_shuffle_f32x4(m[i], m[4 + i], 0xdd);
        t[8 + i] = _mm512_shuffle_f32x4(m[8 + i], m[12 + i], 0x88);
        t[12 + i] = _mm512_shuffle_f32x4(m[8 + i], m[12 + i], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        m[i] = _mm512_shuffle_f32x4(t[i], t[8 + i], 0x88);
        m[4 + i] = _mm512_shuffle_f32x4(t[4 + i], t[12 + i], 0x88);
        m[8 + i] = _mm512_shuffle_f32x4(t[i], t[8 + i], 0xdd);
        m[12 + i] = _mm512_shuffle_f32x4(t[4 + i], t[12 + i], 0xdd);
    }
}
#endif

}  // namespace
