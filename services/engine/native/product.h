// A product: every 32 rows of x pass over each panel of w.
//
// Few rows take the panels as they come from memory. Of many, blocks of panels stay in the cache of a core while all rows
// pass, and the next block is fetched meanwhile; where rows are long, their parts pass one after the other, over sums kept
// between them. Sums become numbers while the next tiles are multiplied. They run over k in one order, whatever the rows.
#pragma once

#include "operands.h"

#ifdef BATON_AMX
namespace {

constexpr int64_t FEW_ROWS = 128;
// So many bytes ahead of where it is read is a panel fetched that comes from memory: on one core, in huge pages, 14 GB/s
// without, 19 with 1 to 1.5 KiB, 16 with 4 KiB; a little more where sums become numbers between panels.
constexpr int64_t FETCHED_AHEAD = 2048;
// Steps of 64 bytes of 32 of many rows of x, which stay in the nearest cache.
constexpr int64_t PART_STEPS = 16;
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

// Lines that are needed soon and lie end to end, fetched a few at a time.
struct Ahead {
    const char* at = nullptr;
    int64_t left = 0, each = 0;

    void fetch() {
        for (int64_t i = 0; i < each && left > 0; i++, at += 64, left--) _mm_prefetch(at, _MM_HINT_T1);
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

// What comes next of both sides.
struct Next {
    Ahead w{}, x{};

    void fetch() {
        w.fetch();
        x.fetch();
    }
};

// What passes by once should not push x out of the nearest cache; what memory still brings is better off there.
#define BATON_LOAD_W(IS_FEW, tile, from)     \
    if (IS_FEW)                              \
        _tile_loadd(tile, from, 64);         \
    else                                     \
        _tile_stream_loadd(tile, from, 64)

// Adds up tiles of a panel of w with those of one or two groups of x, for some steps.
template <int GROUPS, bool IS_FEW, typename P>
inline __attribute__((always_inline)) void add_steps(const char*& w, const uint32_t*& x, int64_t steps, Next& next) {
    for (int64_t k = 0; k < steps; k++, w += 2048, x += GROUPS * TILE) {
        _tile_loadd(6, x, 64);
        BATON_LOAD_W(IS_FEW, 4, w);
        BATON_MULTIPLY_TILES(P, 0, 4, 6);
        BATON_LOAD_W(IS_FEW, 5, w + 1024);
        BATON_MULTIPLY_TILES(P, 1, 5, 6);
        if (GROUPS == 2) {
            _tile_loadd(7, x + TILE, 64);
            BATON_MULTIPLY_TILES(P, 2, 4, 7);
            BATON_MULTIPLY_TILES(P, 3, 5, 7);
        }
        next.fetch();
    }
}

template <typename P>
struct Product {
    P p;
    PackedRows x;
    float* kept;     // [panels] of four tiles
    float* scratch;  // two times four tiles
    Waiting<P> waiting{};
    Next next{};
    bool flip = false;

    // One panel as it comes from memory.
    void stream(int64_t panel) {
        const Panels<P> panels{p};
        next.w = {panels.at(panel) + FETCHED_AHEAD, panels.bytes() / 64, 32};
        for (int64_t g = 0; g < x.groups; g += 2) run_panel<true>(panels, g, 0, panel, kept);
    }
    // Panels from `first` to `end`; as many may come next.
    void run(int64_t first, int64_t end, bool has_next) {
        const Panels<P> panels{p};
        const int64_t count = end - first, pairs = (x.groups + 1) / 2;
        const int64_t coming = has_next ? std::min(count, panels.count() - end) : 0;
        next.w = {panels.at(end), coming * panels.bytes() / 64, 32 / pairs + 1};
        next.x.each = 32 / count + 1;
        for (int64_t g = 0; g < x.groups; g += 2) {
            for (int64_t part = 0; part < x.steps; part += x.most) {
                fetch_x(g + 2, part);
                for (int64_t i = 0; i < count; i++) run_panel<false>(panels, g, part, first + i, kept + i * 4 * TILE);
            }
        }
    }
    void finish() {
        while (waiting.left) waiting.finish_one(p);
    }

  private:
    void fetch_x(int64_t group, int64_t part) {
        next.x.left = group < x.groups ? 32 * x.count(part) : 0;
        if (next.x.left) next.x.at = reinterpret_cast<const char*>(x.at(group, part));
    }
    template <bool IS_FEW>
    void run_panel(const Panels<P>& panels, int64_t group, int64_t part, int64_t panel, float* sums) {
        if (x.has_second(group))
            add_panel<2, IS_FEW>(panels, group, part, panel, sums);
        else
            add_panel<1, IS_FEW>(panels, group, part, panel, sums);
    }
    template <int GROUPS, bool IS_FEW>
    void add_panel(const Panels<P>& panels, int64_t group, int64_t part, int64_t panel, float* sums) {
        const int64_t count = x.count(part);
        const char* from_w = panels.at(panel) + part * 2048;
        const uint32_t* from_x = x.at(group, part);
        if (part == 0)
            zero<GROUPS>();
        else
            load<GROUPS>(sums);
        add_steps<GROUPS, IS_FEW, P>(from_w, from_x, count / 4, next);
        waiting.finish_one(p);
        add_steps<GROUPS, IS_FEW, P>(from_w, from_x, count / 4, next);
        waiting.finish_one(p);
        add_steps<GROUPS, IS_FEW, P>(from_w, from_x, count - count / 4 * 2, next);
        if (part + x.most < x.steps) return store<GROUPS>(sums);
        float* to = scratch + (flip = !flip) * 4 * TILE;
        store<GROUPS>(to);
        waiting = {to, 16 * group, panels.column(panel), panels.second(), GROUPS};
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

// Panels that a thread has in its cache at once.
inline int64_t panels_at_once(int64_t panels, int64_t steps, int64_t groups, int threads) {
    const int64_t bytes = groups * steps * 1024 > SMALL_X ? LARGE_BLOCK : SMALL_BLOCK;
    const int64_t most = std::max<int64_t>(1, bytes / (2048 * steps)), share = (panels + threads - 1) / threads;
    const int64_t blocks = (share + most - 1) / most;
    return (share + blocks - 1) / blocks;
}

template <typename P>
void multiply_part(P p, int threads) {
    const int64_t groups = (p.rows + 15) / 16, steps = Panels<P>{p}.steps(), panels = Panels<P>{p}.count();
    const bool is_few = p.rows <= FEW_ROWS;
    const int64_t at_once = is_few ? 1 : panels_at_once(panels, steps, groups, threads);
    thread_local std::vector<uint32_t, Aligned<uint32_t>> packed_x;
    packed_x.resize(groups * steps * TILE);
    p.prepare();
    const PackedRows x{packed_x.data(), groups, steps, is_few ? steps : std::min(steps, PART_STEPS)};
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
        thread_local std::vector<float, Aligned<float>> sums;
        sums.resize((at_once + 2) * 4 * TILE);
        Product<P> work{p, x, sums.data() + 8 * TILE, sums.data()};
#pragma omp for schedule(static)
        for (int64_t first = 0; first < panels; first += at_once) {
            if (is_few)
                work.stream(first);
            else
                work.run(first, std::min(panels, first + at_once), first + at_once < panels);
        }
        work.finish();
        _tile_release();
    }
}

}  // namespace
#endif
