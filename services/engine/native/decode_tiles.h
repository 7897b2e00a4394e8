// Attention of one query token over a chunk of keys with tiles: bfloat16, up to sixteen query heads of one KV head.
//
// Keys are left-hand tiles as they lie; values are paired on their way into right-hand tiles, their columns in the order in
// which `unpack` leaves them. Weights are rounded to bfloat16, as in attention of prompts.
#pragma once

#include <algorithm>
#include <limits>

#include "tiles.h"

#ifdef BATON_AMX
namespace {

constexpr int64_t GROUP = 16, KEYS_AT_ONCE = 16;  // query heads, and keys, of a tile

// What a thread works in; `C` positions at most.
template <int64_t C>
struct alignas(64) ChunkScratch {
    float scores[GROUP][C];
    bfloat16 weights[GROUP][C];
    uint32_t query[4 * TILE];
    uint32_t values[4 * TILE];
    float sums[4 * TILE];
};

// Scores of sixteen keys, from the tiles of the query in 2 to 5, to a column of each head's row.
template <int D, int64_t C>
inline void score_keys(const bfloat16* keys, int64_t heads, ChunkScratch<C>& s, int64_t at) {
    _tile_zero(0);
    _tile_loadd(1, keys, 2 * D);
    _tile_dpbf16ps(0, 1, 2);
    _tile_loadd(1, keys + 32, 2 * D);
    _tile_dpbf16ps(0, 1, 3);
    if constexpr (D == 128) {
        _tile_loadd(1, keys + 64, 2 * D);
        _tile_dpbf16ps(0, 1, 4);
        _tile_loadd(1, keys + 96, 2 * D);
        _tile_dpbf16ps(0, 1, 5);
    }
    _tile_stored(0, s.sums, 64);
    __m512 rows[16];
    for (int i = 0; i < 16; i++) rows[i] = _mm512_load_ps(s.sums + 16 * i);
    transpose(rows);
    for (int64_t g = 0; g < heads; g++) _mm512_store_ps(s.scores[g] + at, rows[g]);
}

// Scores of a head to weights; the largest score and the sum of weights to `found`.
template <int64_t C>
inline void weigh(ChunkScratch<C>& s, int64_t head, int64_t begin, int64_t end, float scale, float softcap, float* found) {
    float* row = s.scores[head];
    const int64_t size = (end + 31) / 32 * 32;
    const __m512i order = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512 lowest = _mm512_set1_ps(-std::numeric_limits<float>::infinity()), factor = _mm512_set1_ps(scale);
    __m512 largest = lowest, total = _mm512_setzero_ps();
    for (int64_t i = 0; i < size; i += 16) {
        const __m512i place = _mm512_add_epi32(_mm512_set1_epi32(i), order);
        const __mmask16 counts = _mm512_cmpge_epi32_mask(place, _mm512_set1_epi32(begin)) &
                                 _mm512_cmplt_epi32_mask(place, _mm512_set1_epi32(end));
        __m512 scaled = _mm512_mul_ps(_mm512_load_ps(row + i), factor);
        if (softcap) {
            alignas(64) float each[16];
            _mm512_store_ps(each, scaled);
            for (float& one : each) one = softcap * std::tanh(one / softcap);
            scaled = _mm512_load_ps(each);
        }
        scaled = _mm512_mask_mov_ps(lowest, counts, scaled);
        _mm512_store_ps(row + i, scaled);
        largest = _mm512_max_ps(scaled, largest);
    }
    const float top = _mm512_reduce_max_ps(largest);
    for (int64_t i = 0; i < size; i += 32) {
        const __m512 low = exp_negative(_mm512_sub_ps(_mm512_load_ps(row + i), _mm512_set1_ps(top)));
        const __m512 high = exp_negative(_mm512_sub_ps(_mm512_load_ps(row + i + 16), _mm512_set1_ps(top)));
        total = _mm512_add_ps(total, _mm512_add_ps(low, high));
        _mm512_store_si512(s.weights[head] + i, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
    found[0] = top;
    found[1] = _mm512_reduce_add_ps(total);
}

// Sixteen values of 64 elements, those of rows outside [begin, end) as zeros, into eight rows of four right-hand tiles.
inline void pair_values(const bfloat16* values, int64_t stride, int64_t begin, int64_t end, uint32_t* tiles) {
    for (int64_t pair = 0; pair < 8; pair++)
        for (int half = 0; half < 2; half++) {
            __m512i rows[2];
            for (int i = 0; i < 2; i++) {
                const int64_t row = 2 * pair + i;
                const bool counts = row >= begin && row < end;
                rows[i] = counts ? _mm512_loadu_si512(values + row * stride + 32 * half) : _mm512_setzero_si512();
            }
            uint32_t* to = tiles + 2 * half * TILE + 16 * pair;
            _mm512_store_si512(to, _mm512_unpacklo_epi16(rows[0], rows[1]));
            _mm512_store_si512(to + TILE, _mm512_unpackhi_epi16(rows[0], rows[1]));
        }
}

// Sums of 64 elements of each head out of four tiles.
inline void store_sums(float* sums, int64_t heads, float* to, int64_t stride) {
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i second = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    _tile_stored(4, sums, 64);
    _tile_stored(5, sums + TILE, 64);
    _tile_stored(6, sums + 2 * TILE, 64);
    _tile_stored(7, sums + 3 * TILE, 64);
    for (int64_t g = 0; g < heads; g++)
        for (int half = 0; half < 2; half++) {
            const __m512 low = _mm512_load_ps(sums + 2 * half * TILE + 16 * g);
            const __m512 high = _mm512_load_ps(sums + (2 * half + 1) * TILE + 16 * g);
            _mm512_storeu_ps(to + g * stride + 32 * half, _mm512_permutex2var_ps(low, first, high));
            _mm512_storeu_ps(to + g * stride + 32 * half + 16, _mm512_permutex2var_ps(low, second, high));
        }
}

// A chunk of positions [begin, end) of one KV head, sixteen at a time from `first`; the block size is a multiple of that.
template <int D>
struct Chunk {
    const bfloat16* plane;
    const int32_t* table;
    int64_t block_size, to_values, begin, end;

    int64_t first() const { return begin / KEYS_AT_ONCE * KEYS_AT_ONCE; }
    int64_t count() const { return end - first(); }
    const bfloat16* keys(int64_t offset) const {
        const int64_t position = first() + offset;
        return plane + (table[position / block_size] * block_size + position % block_size) * D;
    }
    const bfloat16* values(int64_t offset) const { return keys(offset) + to_values; }
};

// Blocks lie anywhere, each on a page of its own: their pages are found first, all at a time, then they are fetched.
template <typename Place>
inline void find_pages(int64_t count, Place place) {
    for (int64_t i = 0; i < count; i += KEYS_AT_ONCE) _mm_prefetch(reinterpret_cast<const char*>(place(i)), _MM_HINT_T1);
}

template <int D>
inline void fetch_sixteen(const bfloat16* rows) {
    const char* line = reinterpret_cast<const char*>(rows);
    for (const char* end = line + KEYS_AT_ONCE * D * 2; line < end; line += 64) _mm_prefetch(line, _MM_HINT_T1);
}

// One chunk for heads whose rows of the query are `rows`, null where there is no head; `next` is what comes after it.
// `found` gets the largest score and the sum of weights of each head, `sums` [heads, D]. Tiles must be configured.
template <int D, int64_t C>
void attend_tiles(const Chunk<D>& chunk, const Chunk<D>& next, const bfloat16* const* rows, int64_t heads, float scale,
                  float softcap, float* found, float* sums, ChunkScratch<C>& s) {
    const int64_t count = chunk.count(), begin = chunk.begin - chunk.first();
    pack_rows(rows, D, s.query);
    asm volatile("" ::: "memory");  // tiles are loaded behind the compiler's back
    _tile_loadd(2, s.query, 64);
    _tile_loadd(3, s.query + TILE, 64);
    if constexpr (D == 128) {
        _tile_loadd(4, s.query + 2 * TILE, 64);
        _tile_loadd(5, s.query + 3 * TILE, 64);
    }
    find_pages(count, [&](int64_t i) { return chunk.values(i); });
    for (int64_t i = 0; i < count; i += KEYS_AT_ONCE) {
        fetch_sixteen<D>(chunk.values(i));
        score_keys<D>(chunk.keys(i), heads, s, i);
    }
    find_pages(next.count(), [&](int64_t i) { return next.keys(i); });
    for (int64_t g = 0; g < heads; g++) weigh(s, g, begin, count, scale, softcap, found + 2 * g);
    for (int64_t g = heads; g < GROUP; g++) std::fill_n(s.weights[g], C, bfloat16{});
    for (int64_t part = 0; part < D; part += 64) {
        _tile_zero(4);
        _tile_zero(5);
        _tile_zero(6);
        _tile_zero(7);
        for (int64_t i = 0; i < count; i += 2 * KEYS_AT_ONCE) {
            for (int64_t from : {i, i + KEYS_AT_ONCE}) {
                if (part == 0 && from < next.count()) fetch_sixteen<D>(next.keys(from));
                const bfloat16* values = from < count ? chunk.values(from) + part : nullptr;
                pair_values(values, D, begin - from, count - from, s.values + (from - i) * 8);
            }
            asm volatile("" ::: "memory");
            _tile_loadd(0, s.weights[0] + i, 2 * C);
            _tile_loadd(1, s.values, 64);
            _tile_dpbf16ps(4, 0, 1);
            _tile_loadd(2, s.values + TILE, 64);
            _tile_dpbf16ps(5, 0, 2);
            _tile_loadd(3, s.values + 2 * TILE, 64);
            _tile_dpbf16ps(6, 0, 3);
            _tile_loadd(1, s.values + 3 * TILE, 64);
            _tile_dpbf16ps(7, 0, 1);
        }
        store_sums(s.sums, heads, sums + part, D);
    }
}

}  // namespace
#endif
