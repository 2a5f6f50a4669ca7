// Rows (tensors, or stretches of them) of equal dtypes, cut into tiles: the table of them that a launch carries, how a
// block finds its row in it, and how the host fills it.
//
// A pack is what one thread loads at a time: as many elements as make 16 bytes of the launch's widest dtype. Operands
// that are aligned for it are loaded at once, others element by element. Elements before the output's first aligned
// pack (the head) and after its last (the tail) are done singly. A block takes a tile of packs, finds its row, and
// strides on when there are more tiles than blocks; so a thousand small tensors are one launch.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <type_traits>

#include "launch.h"
#include "status.h"

namespace sds {
namespace cuda {
namespace {

constexpr uint64_t kMostBlocks = 1 << 20;
constexpr uint64_t kMostTiles = UINT32_MAX - kMostBlocks;  // so that a block's next tile is still a number

// What a launch carries in its parameters (4 KB at most). A row is: out, count, first tile | head << 32, aligned
// operands as bits, then the operands' addresses.
constexpr int kRowWords = 4;
template <int Inputs, int Words>
struct Table {
    uint64_t* counts;
    uint64_t careful;  // bits of the smallest magnitude that takes the careful store
    uint32_t rows, tiles;
    Overflow overflow;
    int inputs, own;  // of which a NaN counts
    uint8_t out;
    uint8_t in[Inputs];
    uint64_t words[Words];

    __host__ __device__ int stride() const { return kRowWords + inputs; }
};

struct Place {  // where a tile lies
    const uint64_t* row;
    int number;
    uint64_t packs_before;  // of its row
};

template <class Rows>
__device__ Place place_of(const Rows& table, uint32_t tile, uint32_t packs_a_tile) {
    int low = 0, high = static_cast<int>(table.rows) - 1;  // the last row whose first tile is not after this one
    const int stride = table.stride();
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (static_cast<uint32_t>(table.words[middle * stride + 2]) <= tile) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    const uint64_t* row = table.words + low * stride;
    return {row, low, static_cast<uint64_t>(tile - static_cast<uint32_t>(row[2])) * packs_a_tile};
}

template <class Rows>
__device__ uint64_t* counts_of(const Rows& table, int row) {
    return table.counts == nullptr ? nullptr : table.counts + 2 * row;
}

// ---- the host's side

bool is_wide(const Launch& launch) {
    bool wide = launch.program.wide;
    for (DType dtype : launch.in) wide |= dtype == DType::f64;
    return wide;
}

int pack_elements(const Launch& launch) {
    size_t widest = size_of(launch.out);
    for (DType dtype : launch.in) widest = std::max(widest, size_of(dtype));
    return static_cast<int>(16 / widest);
}

// Elements until the output is aligned for packs.
uint64_t head_of(const Row& row, uint64_t pack_bytes, uint64_t size) {
    const uint64_t past = row.out % pack_bytes;
    return std::min(row.count, past == 0 ? 0 : (pack_bytes - past) / size);
}

template <class... Parameters>
void start(void (*kernel)(Parameters...), unsigned blocks, int threads, int shared_bytes, void* stream,
           const std::common_type_t<Parameters>&... parameters) {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
    config.stream = static_cast<cudaStream_t>(stream);
    check(cudaLaunchKernelEx(&config, kernel, parameters...));
}

// Cuts the rows into tables and hands each to `launch_one`.
template <class Rows, class LaunchOne>
void in_tables(const Launch& launch, const std::vector<Row>& rows, Rows& table, int words, int v, uint64_t tile_packs,
               LaunchOne launch_one) {
    const uint64_t out_size = size_of(launch.out), out_pack = out_size * v;
    table.inputs = static_cast<int>(launch.in.size());
    table.own = launch.program.own;
    for (size_t k = 0; k < launch.in.size(); ++k) table.in[k] = static_cast<uint8_t>(launch.in[k]);
    table.out = static_cast<uint8_t>(launch.out);
    table.overflow = launch.overflow;
    table.careful = is_wide(launch) ? careful_from_wide(launch.out) : careful_from(launch.out);
    const uint32_t most = static_cast<uint32_t>(words / table.stride());
    for (size_t next = 0; next < rows.size();) {
        const size_t begin = next;
        uint64_t tiles = 0;
        for (table.rows = 0; next < rows.size() && table.rows < most; ++next) {
            const Row& row = rows[next];
            if (row.out % out_size != 0) throw Error(Code::invalid, "an output is off its dtype's alignment");
            if (row.out == 0 && row.count != 0) throw Error(Code::invalid, "an output has no memory");
            const uint64_t head = head_of(row, out_pack, out_size);
            const uint64_t more = std::max<uint64_t>(1, ((row.count - head) / v + tile_packs - 1) / tile_packs);
            if (more > kMostTiles) throw Error(Code::invalid, "a tensor is too large for one launch");
            if (tiles + more > kMostTiles) break;
            uint64_t* to = table.words + table.rows * table.stride();
            to[0] = row.out;
            to[1] = row.count;
            to[2] = tiles | head << 32;
            to[3] = 0;
            for (int k = 0; k < table.inputs; ++k) {
                const uint64_t size = size_of(launch.in[k]);
                if (row.in[k] % size != 0) throw Error(Code::invalid, "an input is off its dtype's alignment");
                if (row.in[k] == 0 && row.count != 0) throw Error(Code::invalid, "an input has no memory");
                to[3] |= static_cast<uint64_t>((row.in[k] + head * size) % (size * v) == 0) << k;
                to[kRowWords + k] = row.in[k];
            }
            tiles += more;
            ++table.rows;
        }
        table.tiles = static_cast<uint32_t>(tiles);
        table.counts = launch.counts == nullptr ? nullptr : launch.counts + 2 * begin;
        launch_one(static_cast<unsigned>(std::min(tiles, kMostBlocks)));
    }
}

}  // namespace
}  // namespace cuda
}  // namespace sds
