// Attention of one query token per request over paged KV, read where it lies.
//
// A request's keys are worked on in chunks of a fixed number of positions, whose partial results are merged in order. So
// what a request gets depends neither on its batch mates nor on the number of threads, bit for bit. Scores, weights and
// sums are float32. Source of the merge: Dao et al., "Flash-Decoding for long-context inference" (2023).

#include <algorithm>
#include <limits>
#include <vector>

#include "decode_tiles.h"
#include "kernels.h"

namespace {

constexpr int64_t CHUNK = 256;  // positions

template <typename T, int D>
inline float dot(const T* query, const T* key, int64_t dim) {
    const int64_t size = D ? D : dim;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < size; i++) sum += widen(query[i]) * widen(key[i]);
    return sum;
}

#ifdef BATON_DOT_BF16
template <int D>
inline void score_sixteen(const bfloat16* query, const bfloat16* keys, float* scores) {
    __m512 rows[16];
    for (int row = 0; row < 16; row++) {
        rows[row] = _mm512_setzero_ps();
        for (int i = 0; i < D; i += 32)
            rows[row] = _mm512_dpbf16_ps(rows[row], __m512bh(_mm512_loadu_si512(query + i)),
                                         __m512bh(_mm512_loadu_si512(keys + row * D + i)));
    }
    _mm512_storeu_ps(scores, sum_each(rows));
}
#endif

// Products of one query with `count` keys that lie end to end.
template <typename T, int D>
inline void score(const T* query, const T* keys, int64_t count, int64_t dim, float* scores) {
    int64_t row = 0;
#ifdef BATON_DOT_BF16
    if constexpr (D > 0 && sizeof(T) == 2)
        for (; row + 16 <= count; row += 16) score_sixteen<D>(query, keys + row * D, scores + row);
#endif
    for (; row < count; row++) scores[row] = dot<T, D>(query, keys + row * (D ? D : dim), dim);
}

// sums += weights · values over `count` rows that lie end to end, for G queries: sums [G, dim], weights G rows CHUNK apart.
template <typename T, int D, int G>
inline void add_weighted(float* sums, const float* weights, const T* values, int64_t count, int64_t dim) {
    if constexpr (D > 0) {
        float local[G][D];
        std::memcpy(local, sums, sizeof local);
        for (int64_t row = 0; row < count; row++)
            for (int g = 0; g < G; g++)
#pragma omp simd
                for (int i = 0; i < D; i++) local[g][i] += weights[g * CHUNK + row] * widen(values[row * D + i]);
        std::memcpy(sums, local, sizeof local);
    } else {
        for (int64_t row = 0; row < count; row++)
            for (int g = 0; g < G; g++)
#pragma omp simd
                for (int64_t i = 0; i < dim; i++)
                    sums[g * dim + i] += weights[g * CHUNK + row] * widen(values[row * dim + i]);
    }
}

template <typename T>
struct Batch {
    T* out;              // [requests, kv_heads, group, dim]
    const T* query;      // element (request, head, i) at request * query_row + head * query_head + i
    const T* kv;         // one layer, [2, kv_heads, blocks, block_size, dim]
    const int32_t* blocks;    // tables of all requests, end to end
    const int64_t* tables;    // [requests] where each begins in `blocks`
    const int64_t* lengths;   // [requests] positions in KV, the new one included
    int64_t query_row, query_head, requests, kv_heads, group, dim, num_blocks, block_size, window;
    float scale, softcap;

    int64_t first(int64_t request) const { return window ? std::max<int64_t>(0, lengths[request] - window) : 0; }
};

struct Item {
    int64_t request, head, begin, end, slot;
};

// Blocks lie anywhere and are too short for the processor to see what comes next.
template <typename T>
inline void fetch(const T* rows, int64_t elements) {
    const char* line = reinterpret_cast<const char*>(rows);
    for (const char* end = line + elements * sizeof(T); line < end; line += 64) __builtin_prefetch(line, 0, 2);
}

// One chunk of one KV head: for each query head of its group the largest score, the sum of weights, the sum of values.
template <typename T, int D>
void attend_chunk(const Batch<T>& batch, const Item& item, float* partial) {
    const int64_t dim = D ? D : batch.dim, size = batch.block_size, group = batch.group;
    const T* plane = batch.kv + item.head * batch.num_blocks * size * dim;
    const int64_t to_values = batch.kv_heads * batch.num_blocks * size * dim;
    const int32_t* table = batch.blocks + batch.tables[item.request];
    const T* query = batch.query + item.request * batch.query_row + item.head * group * batch.query_head;
    const int64_t count = item.end - item.begin;
    thread_local std::vector<float> scratch;
    scratch.resize(group * CHUNK);
    float* scores = scratch.data();

    for (int64_t position = item.begin; position < item.end;) {
        const int64_t inside = position % size, last = std::min(item.end, position - inside + size);
        const T* keys = plane + (table[position / size] * size + inside) * dim;
        if (last < item.end) fetch(plane + table[last / size] * size * dim, std::min(size, item.end - last) * dim);
        fetch(keys + to_values, (last - position) * dim);
        for (int64_t g = 0; g < group; g++)
            score<T, D>(query + g * batch.query_head, keys, last - position, dim,
                        scores + g * CHUNK + position - item.begin);
        position = last;
    }
    float* sums = partial + 2 * group;
    std::fill(sums, sums + group * dim, 0.0f);
    for (int64_t g = 0; g < group; g++) {
        float* row = scores + g * CHUNK;
        float largest = -std::numeric_limits<float>::infinity(), total = 0;
        for (int64_t i = 0; i < count; i++) {
            row[i] *= batch.scale;
            if (batch.softcap) row[i] = batch.softcap * std::tanh(row[i] / batch.softcap);
            largest = row[i] > largest ? row[i] : largest;
        }
#pragma omp simd reduction(+ : total)
        for (int64_t i = 0; i < count; i++) {
            row[i] = exp_negative(row[i] - largest);
            total += row[i];
        }
        partial[2 * g] = largest;
        partial[2 * g + 1] = total;
    }
    for (int64_t position = item.begin; position < item.end;) {
        const int64_t inside = position % size, last = std::min(item.end, position - inside + size);
        const T* values = plane + to_values + (table[position / size] * size + inside) * dim;
        const float* weights = scores + position - item.begin;
        int64_t g = 0;
        for (; g + 3 <= group; g += 3)
            add_weighted<T, D, 3>(sums + g * dim, weights + g * CHUNK, values, last - position, dim);
        for (; g < group; g++)
            add_weighted<T, D, 1>(sums + g * dim, weights + g * CHUNK, values, last - position, dim);
        position = last;
    }
}

#ifdef BATON_AMX
// As attend_chunk, with tiles, which must be configured; `next` is what this thread is likely to work on after it.
template <int D>
void attend_chunk_tiles(const Batch<bfloat16>& batch, const Item& item, const Item& next, float* partial) {
    const auto chunk = [&](const Item& one) {
        const int64_t plane = batch.num_blocks * batch.block_size * D;
        const int32_t* table = batch.blocks + batch.tables[one.request];
        return Chunk<D>{batch.kv + one.head * plane, table, batch.block_size, batch.kv_heads * plane, one.begin, one.end};
    };
    thread_local ChunkScratch<CHUNK> scratch;
    const bfloat16* query = batch.query + item.request * batch.query_row + item.head * batch.group * batch.query_head;
    for (int64_t g = 0; g < batch.group; g += GROUP) {
        const int64_t heads = std::min(GROUP, batch.group - g);
        const bfloat16* rows[GROUP];
        for (int64_t i = 0; i < GROUP; i++) rows[i] = i < heads ? query + (g + i) * batch.query_head : nullptr;
        attend_tiles<D>(chunk(item), chunk(next), rows, heads, batch.scale, batch.softcap, partial + 2 * g,
                        partial + 2 * batch.group + g * D, scratch);
    }
}

inline bool takes_tiles(int64_t block_size) { return block_size % KEYS_AT_ONCE == 0 && may_use_tiles(); }
#endif

template <typename T>
void merge_chunks(const Batch<T>& batch, int64_t request, int64_t head, const float* partial, int64_t chunks) {
    const int64_t stride = batch.group * (batch.dim + 2);
    std::vector<float> sums(batch.dim);
    for (int64_t g = 0; g < batch.group; g++) {
        float largest = -std::numeric_limits<float>::infinity(), total = 0;
        for (int64_t c = 0; c < chunks; c++) largest = std::max(largest, partial[c * stride + 2 * g]);
        std::fill(sums.begin(), sums.end(), 0.0f);
        for (int64_t c = 0; c < chunks; c++) {
            const float* one = partial + c * stride;
            const float weight = exp_negative(one[2 * g] - largest);
            total += weight * one[2 * g + 1];
            add_weighted<float, 0, 1>(sums.data(), &weight, one + 2 * batch.group + g * batch.dim, 1, batch.dim);
        }
        T* out = batch.out + ((request * batch.kv_heads + head) * batch.group + g) * batch.dim;
        for (int64_t i = 0; i < batch.dim; i++) narrow(sums[i] / total, out + i);
    }
}

// All items, shared by the threads of a team.
template <typename T, int D>
void attend_chunks(const Batch<T>& batch, const std::vector<Item>& items, float* partials, int64_t stride) {
    const int64_t count = items.size();
#ifdef BATON_AMX
    if constexpr (sizeof(T) == 2 && (D == 64 || D == 128)) {
        if (takes_tiles(batch.block_size)) {
            const TileShapes shapes;
            _tile_loadconfig(&shapes);
#pragma omp for schedule(dynamic, 4)
            for (int64_t i = 0; i < count; i++)
                attend_chunk_tiles<D>(batch, items[i], items[std::min(i + 1, count - 1)], partials + items[i].slot * stride);
            _tile_release();
            return;
        }
    }
#endif
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < count; i++) attend_chunk<T, D>(batch, items[i], partials + items[i].slot * stride);
}

template <typename T, int D>
void attend(const Batch<T>& batch, int threads) {
    std::vector<Item> items;
    std::vector<int64_t> slots;  // where the partial results of each request and head begin
    int64_t slot = 0;
    for (int64_t request = 0; request < batch.requests; request++)
        for (int64_t head = 0; head < batch.kv_heads; head++) {
            slots.push_back(slot);
            const int64_t first = batch.first(request), length = batch.lengths[request];
            for (int64_t begin = first; begin < length; begin = (begin / CHUNK + 1) * CHUNK)
                items.push_back({request, head, begin, std::min(length, (begin / CHUNK + 1) * CHUNK), slot++});
        }
    slots.push_back(slot);
    const int64_t stride = batch.group * (batch.dim + 2);
    thread_local std::vector<float> partials;
    partials.resize(slot * stride);
    float* base = partials.data();
    const int64_t rows = slots.size() - 1;
#pragma omp parallel num_threads(threads)
    {
        attend_chunks<T, D>(batch, items, base, stride);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < rows; i++)
            merge_chunks(batch, i / batch.kv_heads, i % batch.kv_heads, base + slots[i] * stride, slots[i + 1] - slots[i]);
    }
}

template <typename T>
void attend_any(const Batch<T>& batch, int threads) {
    if (batch.dim == 64) return attend<T, 64>(batch, threads);
    if (batch.dim == 128) return attend<T, 128>(batch, threads);
    attend<T, 0>(batch, threads);
}

}  // namespace

#define BATON_DECODE_ATTENTION(NAME, T)                                                                              \
    extern "C" void NAME(T* out, const T* query, const T* kv, const int32_t* blocks, const int64_t* tables,          \
                         const int64_t* lengths, int64_t query_row, int64_t query_head, int64_t requests,           \
                         int64_t kv_heads, int64_t group, int64_t dim, int64_t num_blocks, int64_t block_size,      \
                         int64_t window, float scale, float softcap, int threads) {                                 \
        attend_any<T>({out, query, kv, blocks, tables, lengths, query_row, query_head, requests, kv_heads, group,   \
                       dim, num_blocks, block_size, window, scale, softcap},                                        \
                      threads);                                                                                     \
    }

BATON_DECODE_ATTENTION(decode_attention_bfloat16, bfloat16)
BATON_DECODE_ATTENTION(decode_attention_float32, float)
