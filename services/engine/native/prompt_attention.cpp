// Causal attention of the last tokens of one request over its paged KV, in bfloat16 with float32 scores and sums.
//
// Keys and values are repacked once for all query heads; then each block of 32 query rows passes over them in blocks of
// KEYS positions with a running maximum, so no matrix of scores exists. Rows that fill the last block up are zeros. Blocks begin at multiples of KEYS: what a token
// gets does not depend on the chunk in which it was fed. Needs AMX. Source: Dao, "FlashAttention-2" (2023).

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "tiles.h"

#ifdef BATON_AMX
namespace {

constexpr int64_t ROWS = 32, KEYS = 128;
constexpr float LOWEST = -std::numeric_limits<float>::infinity();

struct Prompt {
    bfloat16* out;          // [tokens, kv_heads * group, dim]
    const bfloat16* query;  // element (token, head, i) at token * query_row + head * query_head + i
    const bfloat16* kv;     // one layer, [2, kv_heads, blocks, block_size, dim]
    const int32_t* table;
    int64_t query_row, query_head, tokens, length, kv_heads, group, num_blocks, block_size, window;
    float scale, softcap;

    int64_t first_key(int64_t row) const {
        return window ? std::max<int64_t>(0, length - tokens + row + 1 - window) : 0;
    }
    int64_t end_key(int64_t row) const { return length - tokens + row + 1; }
};

// Keys [groups of 16][dim / 32] and values [groups of 32][dim / 16] as tiles, from the first position needed.
template <int D>
struct Packed {
    std::vector<uint32_t, Aligned<uint32_t>> keys, values;
    int64_t first = 0, groups = 0;  // groups of 32 positions, the same for each head

    void resize(const Prompt& p) {
        first = p.first_key(0) / KEYS * KEYS;
        groups = (p.length - first + 31) / 32;
        keys.resize(p.kv_heads * groups * 16 * D);
        values.resize(p.kv_heads * groups * 16 * D);
    }
    uint32_t* keys_at(int64_t head, int64_t position) { return keys.data() + (head * groups * 32 + position - first) / 2 * D; }
    uint32_t* values_at(int64_t head, int64_t position) { return values.data() + (head * groups * 32 + position - first) / 2 * D; }

    void fill(const Prompt& p, int64_t head, int64_t group) {
        const bfloat16 *rows[32], *plane = p.kv + head * p.num_blocks * p.block_size * D;
        const int64_t position = first + 32 * group, to_values = p.kv_heads * p.num_blocks * p.block_size * D;
        for (int64_t i = 0; i < 32; i++) {
            const int64_t at = position + i;
            rows[i] = at < p.length ? plane + (p.table[at / p.block_size] * p.block_size + at % p.block_size) * D : nullptr;
        }
        pack_rows(rows, D, keys_at(head, position));
        pack_rows(rows + 16, D, keys_at(head, position + 16));
        for (auto& row : rows) row = row ? row + to_values : nullptr;
        pack_pairs(rows, D, values_at(head, position));
    }
};

template <int D>
struct Block {
    alignas(64) bfloat16 query[ROWS][D];
    alignas(64) float scores[ROWS][KEYS];
    alignas(64) bfloat16 weights[ROWS][KEYS];
    alignas(64) float sums[ROWS][D];
    alignas(64) float largest[ROWS], total[ROWS];
};

// scores = query · keysᵀ for groups of 32 positions.
template <int D>
void score(Block<D>& b, const uint32_t* keys, int64_t groups) {
    for (int64_t g = 0; g < groups; g++, keys += 16 * D) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int k = 0; k < D / 32; k++) {
            _tile_loadd(4, &b.query[0][32 * k], 2 * D);
            _tile_loadd(5, &b.query[16][32 * k], 2 * D);
            _tile_loadd(6, keys + k * TILE, 64);
            _tile_loadd(7, keys + 8 * D + k * TILE, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 5, 6);
            _tile_dpbf16ps(2, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, &b.scores[0][32 * g], 4 * KEYS);
        _tile_stored(1, &b.scores[16][32 * g], 4 * KEYS);
        _tile_stored(2, &b.scores[0][32 * g + 16], 4 * KEYS);
        _tile_stored(3, &b.scores[16][32 * g + 16], 4 * KEYS);
    }
}

// sums += weights · values for groups of 32 positions.
template <int D>
void add_values(Block<D>& b, const uint32_t* values, int64_t groups) {
    for (int64_t d = 0; d < D; d += 32) {
        _tile_loadd(0, &b.sums[0][d], 4 * D);
        _tile_loadd(1, &b.sums[16][d], 4 * D);
        _tile_loadd(2, &b.sums[0][d + 16], 4 * D);
        _tile_loadd(3, &b.sums[16][d + 16], 4 * D);
        for (int64_t g = 0; g < groups; g++) {
            const uint32_t* at = values + 16 * D * g + d / 16 * TILE;
            _tile_loadd(4, &b.weights[0][32 * g], 2 * KEYS);
            _tile_loadd(5, &b.weights[16][32 * g], 2 * KEYS);
            _tile_loadd(6, at, 64);
            _tile_loadd(7, at + TILE, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 5, 6);
            _tile_dpbf16ps(2, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, &b.sums[0][d], 4 * D);
        _tile_stored(1, &b.sums[16][d], 4 * D);
        _tile_stored(2, &b.sums[0][d + 16], 4 * D);
        _tile_stored(3, &b.sums[16][d + 16], 4 * D);
    }
}

// Hides what a row does not see: positions of the block other than low … high-1.
void hide(float* scores, int64_t low, int64_t high, int64_t width) {
    for (int64_t i = 0; i < std::min(low, width); i++) scores[i] = LOWEST;
    for (int64_t i = std::max<int64_t>(high, 0); i < width; i++) scores[i] = LOWEST;
}

// Bends scores, scaled, to softcap · tanh(score / softcap).
void bend(float* scores, float scale, float softcap, int64_t width) {
    for (int64_t i = 0; i < width; i++) scores[i] = softcap * std::tanh(scores[i] * scale / softcap);
}

// Scores of sixteen rows to weights, e^(scale · score - largest so far); what was summed before shrinks accordingly.
template <int D>
void weigh(Block<D>& b, int first, float scale, int64_t width) {
    __m512 joined[16];
    for (int r = 0; r < 16; r++) {
        joined[r] = _mm512_load_ps(b.scores[first + r]);
        for (int64_t i = 16; i < width; i += 16)
            joined[r] = _mm512_max_ps(joined[r], _mm512_load_ps(b.scores[first + r] + i));
    }
    const __m512 before = _mm512_load_ps(b.largest + first), lowest = _mm512_set1_ps(LOWEST);
    const __m512 found = _mm512_mul_ps(largest_each(joined), _mm512_set1_ps(scale));
    const __m512 largest = _mm512_max_ps(found, before);
    const __mmask16 none = _mm512_cmp_ps_mask(largest, lowest, _CMP_EQ_OQ);
    const __m512 top = _mm512_mask_mov_ps(largest, none, _mm512_setzero_ps());
    alignas(64) float tops[16], shrinks[16];
    _mm512_store_ps(tops, top);
    _mm512_store_ps(shrinks, exp_negative(_mm512_sub_ps(before, top)));
    _mm512_store_ps(b.largest + first, largest);
    for (int r = 0; r < 16; r++) {
        const __m512 most = _mm512_set1_ps(tops[r]), factor = _mm512_set1_ps(scale);
        joined[r] = _mm512_setzero_ps();
        for (int64_t i = 0; i < width; i += 16) {
            const __m512 score = _mm512_load_ps(b.scores[first + r] + i);
            const __m512 weight = exp_negative(_mm512_fmsub_ps(score, factor, most));
            joined[r] = _mm512_add_ps(joined[r], weight);
            _mm256_store_si256(reinterpret_cast<__m256i*>(&b.weights[first + r][i]), (__m256i)_mm512_cvtneps_pbh(weight));
        }
        if (shrinks[r] != 1)
            for (int i = 0; i < D; i++) b.sums[first + r][i] *= shrinks[r];
    }
    const __m512 total = _mm512_load_ps(b.total + first);
    _mm512_store_ps(b.total + first, _mm512_fmadd_ps(total, _mm512_load_ps(shrinks), sum_each(joined)));
}

template <int D>
void attend_rows(const Prompt& p, Packed<D>& packed, int64_t head, int64_t first) {
    thread_local Block<D> b;
    const int64_t rows = std::min(ROWS, p.tokens - first), end = p.end_key(first + rows - 1);
    std::memset(b.query, 0, sizeof b.query);
    std::memset(b.sums, 0, sizeof b.sums);
    std::fill(b.largest, b.largest + ROWS, LOWEST);
    std::fill(b.total, b.total + ROWS, 0.0f);
    for (int64_t r = 0; r < rows; r++)
        std::memcpy(b.query[r], p.query + (first + r) * p.query_row + head * p.query_head, sizeof b.query[r]);
    for (int64_t key = p.first_key(first) / KEYS * KEYS; key < end; key += KEYS) {
        const int64_t groups = (std::min(KEYS, end - key) + 31) / 32;
        score(b, packed.keys_at(head / p.group, key), groups);
        for (int64_t r = 0; r < rows; r++) {
            if (p.softcap) bend(b.scores[r], p.scale, p.softcap, groups * 32);
            hide(b.scores[r], p.first_key(first + r) - key, p.end_key(first + r) - key, groups * 32);
        }
        for (int half = 0; half < ROWS; half += 16) weigh(b, half, p.softcap ? 1.0f : p.scale, groups * 32);
        add_values(b, packed.values_at(head / p.group, key), groups);
    }
    for (int64_t r = 0; r < rows; r++) {
        bfloat16* out = p.out + ((first + r) * p.kv_heads * p.group + head) * D;
        for (int i = 0; i < D; i++) narrow(b.sums[r][i] / b.total[r], out + i);
    }
}

template <int D>
void attend(const Prompt& p, int threads) {
    thread_local Packed<D> scratch;
    Packed<D>& packed = scratch;
    packed.resize(p);
    const int64_t heads = p.kv_heads * p.group, blocks = (p.tokens + ROWS - 1) / ROWS;
#pragma omp parallel num_threads(threads)
    {
        const TileShapes shapes;
        _tile_loadconfig(&shapes);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < p.kv_heads * packed.groups; i++) packed.fill(p, i / packed.groups, i % packed.groups);
        // The last rows see the most keys: whoever is done early takes the short ones.
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < heads * blocks; i++)
            attend_rows(p, packed, i % heads, (blocks - 1 - i / heads) * ROWS);
        _tile_release();
    }
}

}  // namespace
#endif

// Where `can_multiply`; dim 64 or 128.
extern "C" void prompt_attention_bfloat16(bfloat16* out, const bfloat16* query, const bfloat16* kv, const int32_t* table,
                                          int64_t query_row, int64_t query_head, int64_t tokens, int64_t length,
                                          int64_t kv_heads, int64_t group, int64_t dim, int64_t num_blocks,
                                          int64_t block_size, int64_t window, float scale, float softcap, int threads) {
#ifdef BATON_AMX
    const Prompt p{out,      query, kv,         table,      query_row, query_head, tokens, length,
                   kv_heads, group, num_blocks, block_size, window,    scale,      softcap};
    return dim == 64 ? attend<64>(p, threads) : attend<128>(p, threads);
#endif
}
