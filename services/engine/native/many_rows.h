// Products of many rows: blocks of rows of w stay in the cache of a core as tiles while all rows of x pass.
//
// The sums of 32 x 32 become numbers while the next tiles are multiplied, and what comes next is fetched meanwhile. Where
// rows are long, their parts pass one after the other, over sums kept between them.
#pragma once

#include "operands.h"

#ifdef BATON_AMX
namespace {

// Steps of 64 bytes of 32 rows of x, which stay in the nearest cache: all, or parts of them.
constexpr int64_t MOST_STEPS = 24, PART_STEPS = 16;
// Bytes of a block of w, and of x where that fits beside it: the smaller blocks are, the less is waited for the first.
constexpr int64_t LARGE_BLOCK = 768 << 10, SMALL_BLOCK = 256 << 10, SMALL_X = 1 << 20;

// x as tiles [part][pair of groups][step][2], of groups of sixteen rows; the last group may have no second.
struct PackedRows {
    uint32_t* tiles;
    int64_t groups, steps, most;

    int64_t count(int64_t first) const { return std::min(most, steps - first); }
    bool has_second(int64_t group) const { return (group | 1) < groups; }
    uint32_t* at(int64_t group, int64_t first) const {
        return tiles + (first * groups + (group & ~1) * count(first) + (group & 1)) * TILE;
    }
    void fill(int64_t group, const bfloat16* const* rows) const {
        for (int64_t first = 0; first < steps; first += most) {
            const bfloat16* from[16];
            for (int r = 0; r < 16; r++) from[r] = rows[r] ? rows[r] + 32 * first : nullptr;
            pack_rows(from, 32 * count(first), at(group, first), (1 + has_second(group)) * TILE);
        }
    }
};

// Lines that are needed soon, fetched a few at a time: rows of w, and tiles of x, which lie end to end.
struct Ahead {
    const char* w = nullptr;
    int64_t stride = 0, columns = 0, rows = 0, w_each = 0, column = 0;
    const char* x = nullptr;
    int64_t x_left = 0, x_each = 0;

    void fetch() {
        for (int64_t i = 0; i < w_each && rows > 0; i++) {
            _mm_prefetch(w + 64 * column, _MM_HINT_T1);
            if (++column == columns) column = 0, rows--, w += stride;
        }
        for (int64_t i = 0; i < x_each && x_left > 0; i++, x += 64, x_left--) _mm_prefetch(x, _MM_HINT_T1);
    }
};

// Sums that wait to become numbers.
template <typename P>
struct Waiting {
    const float* sums = nullptr;
    int64_t row = 0, column = 0, second = 0, left = 0;

    void finish_one(const P& p) {
        if (!left) return;
        finish_tiles(p, sums, row, column, second);
        sums += 2 * TILE, row += 16, left--;
    }
};

// Adds up tiles of 32 rows of w with those of one or two groups of x, for some steps.
template <int GROUPS, typename P>
inline __attribute__((always_inline)) void add_steps(const char*& w, const uint32_t*& x, int64_t steps, Ahead& ahead) {
    for (int64_t k = 0; k < steps; k++, w += 2048, x += GROUPS * TILE) {
        _tile_loadd(6, x, 64);
        _tile_stream_loadd(4, w, 64);
        BATON_MULTIPLY_TILES(P, 0, 4, 6);
        _tile_stream_loadd(5, w + 1024, 64);
        BATON_MULTIPLY_TILES(P, 1, 5, 6);
        if (GROUPS == 2) {
            _tile_loadd(7, x + TILE, 64);
            BATON_MULTIPLY_TILES(P, 2, 4, 7);
            BATON_MULTIPLY_TILES(P, 3, 5, 7);
        }
        ahead.fetch();
    }
}

template <typename P>
struct ManyRows {
    P p;
    PackedRows x;
    int64_t second;
    char* w;         // a block's [panels][steps][2] tiles
    float* kept;     // [panels] of four tiles
    float* scratch;  // two times four tiles
    Waiting<P> waiting{};
    Ahead ahead{};
    bool flip = false;

    // Panels of 32 columns from `first`; as many may come next.
    void run(int64_t first, int64_t end, bool has_next) {
        const int64_t panels = end - first, pairs = (x.groups + 1) / 2, lines = 32 * panels * x.steps;
        for (int64_t i = 0; i < panels; i++) pack(column(first + i), w + i * x.steps * 2048);
        asm volatile("" ::: "memory");  // tiles are loaded behind the compiler's back
        const int64_t rows = has_next ? std::min(32 * panels, p.n - column(end)) : 0;
        ahead = {at(column(end)), p.row_bytes(), x.steps, rows, lines / (pairs * panels * x.steps) + 1};
        ahead.x_each = 32 / panels + 1;
        for (int64_t g = 0; g < x.groups; g += 2) {
            for (int64_t part = 0; part < x.steps; part += x.most) {
                fetch_x(g + 2, part);
                for (int64_t i = 0; i < panels; i++)
                    x.has_second(g) ? run_block<2>(g, part, column(first + i), i)
                                    : run_block<1>(g, part, column(first + i), i);
            }
        }
    }
    void finish() {
        while (waiting.left) waiting.finish_one(p);
    }

  private:
    // The last panel may overlap the one before it, and both write the same.
    int64_t column(int64_t panel) const { return std::max<int64_t>(0, std::min(32 * panel, p.n - 32)); }
    const char* at(int64_t column) const { return reinterpret_cast<const char*>(p.w) + column * p.row_bytes(); }

    void fetch_x(int64_t group, int64_t part) {
        ahead.x_left = group < x.groups ? 32 * x.count(part) : 0;
        if (ahead.x_left) ahead.x = reinterpret_cast<const char*>(x.at(group, part));
    }
    void pack(int64_t column, char* tiles) const {
        for (int64_t i = 0; i < 32; i++) {
            const char* from = at(column + (i < 16 ? i : second + i - 16));
            char* to = tiles + 64 * i;
            for (int64_t k = 0; k < x.steps; k++) _mm512_store_si512(to + 2048 * k, _mm512_loadu_si512(from + 64 * k));
        }
    }
    template <int GROUPS>
    void run_block(int64_t group, int64_t part, int64_t column, int64_t panel) {
        const int64_t count = x.count(part);
        const char* from_w = w + (panel * x.steps + part) * 2048;
        const uint32_t* from_x = x.at(group, part);
        float* sums = kept + panel * 4 * TILE;
        if (part == 0)
            zero<GROUPS>();
        else
            load<GROUPS>(sums);
        add_steps<GROUPS, P>(from_w, from_x, count / 4, ahead);
        waiting.finish_one(p);
        add_steps<GROUPS, P>(from_w, from_x, count / 4, ahead);
        waiting.finish_one(p);
        add_steps<GROUPS, P>(from_w, from_x, count - count / 4 * 2, ahead);
        if (part + x.most < x.steps) return store<GROUPS>(sums);
        float* to = scratch + (flip = !flip) * 4 * TILE;
        store<GROUPS>(to);
        waiting = {to, 16 * group, column, second, GROUPS};
    }
    template <int GROUPS>
    static void zero() {
        _tile_zero(0);
        _tile_zero(1);
        if (GROUPS == 2) _tile_zero(2);
        if (GROUPS == 2) _tile_zero(3);
    }
    template <int GROUPS>
    static void load(const float* sums) {
        _tile_loadd(0, sums, 64);
        _tile_loadd(1, sums + TILE, 64);
        if (GROUPS == 2) _tile_loadd(2, sums + 2 * TILE, 64);
        if (GROUPS == 2) _tile_loadd(3, sums + 3 * TILE, 64);
    }
    template <int GROUPS>
    static void store(float* sums) {
        _tile_stored(0, sums, 64);
        _tile_stored(1, sums + TILE, 64);
        if (GROUPS == 2) _tile_stored(2, sums + 2 * TILE, 64);
        if (GROUPS == 2) _tile_stored(3, sums + 3 * TILE, 64);
    }
};

// Panels of 32 columns that a thread packs at once.
inline int64_t panels_at_once(int64_t panels, int64_t steps, int64_t groups, int threads) {
    const int64_t bytes = groups * steps * 1024 > SMALL_X ? LARGE_BLOCK : SMALL_BLOCK;
    const int64_t most = std::max<int64_t>(1, bytes / (2048 * steps)), share = (panels + threads - 1) / threads;
    const int64_t blocks = (share + most - 1) / most;
    return (share + blocks - 1) / blocks;
}

template <typename P>
void multiply_many(P p, int threads) {
    const int64_t groups = (p.rows + 15) / 16, steps = p.row_bytes() / 64, panels = (p.n + 31) / 32;
    const int64_t at_once = panels_at_once(panels, steps, groups, threads);
    thread_local std::vector<uint32_t, Aligned<uint32_t>> packed_x;
    packed_x.resize(groups * steps * TILE);
    p.prepare();
    const PackedRows x{packed_x.data(), groups, steps, steps > MOST_STEPS ? PART_STEPS : steps};
#pragma omp parallel num_threads(threads) firstprivate(p)
    {
#pragma omp for schedule(static)
        for (int64_t g = 0; g < groups; g++) {
            const bfloat16* rows[16];
            p.find_rows(16 * g, rows);
            x.fill(g, rows);
        }
        const TileShapes shapes;
        _tile_loadconfig(&shapes);
        thread_local std::vector<char, Aligned<char>> w;
        thread_local std::vector<float, Aligned<float>> sums;
        w.resize(at_once * steps * 2048);
        sums.resize((at_once + 2) * 4 * TILE);
        ManyRows<P> work{p, x, std::min<int64_t>(16, p.n - 16), w.data(), sums.data() + 8 * TILE, sums.data()};
#pragma omp for schedule(static)
        for (int64_t first = 0; first < panels; first += at_once)
            work.run(first, std::min(panels, first + at_once), first + at_once < panels);
        work.finish();
        _tile_release();
    }
}

}  // namespace
#endif
