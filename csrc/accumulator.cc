#include "accumulator.h"

#include <algorithm>
#include <limits>

#include "reduce.h"

namespace sds {

namespace {

double canonical(double x) { return x == x ? x : bits_as<double>(F64::nan); }

double sum_of_lanes(const double* l, size_t columns) {
    const auto at = [l, columns](size_t lane) { return l[lane * columns]; };
    return ((at(0) + at(4)) + (at(2) + at(6))) + ((at(1) + at(5)) + (at(3) + at(7)));
}

}  // namespace

double sum_in_order(const std::vector<double>& numbers) {
    double total = 0, chunk = 0, lanes[kReduceLanes] = {};
    for (size_t i = 0; i < numbers.size();) {
        lanes[i % kReduceLanes] += numbers[i];
        if (++i % kReduceBlock == 0 || i == numbers.size()) {
            chunk += sum_of_lanes(lanes, 1);
            std::fill(lanes, lanes + kReduceLanes, 0);
        }
        if (i % kReduceChunk == 0 || i == numbers.size()) {
            total += chunk;
            chunk = 0;
        }
    }
    return canonical(total);
}

Accumulator::Accumulator(const Reduce& reduce, Extents extents, double k, int key_bits)
    : kind(reduce.kind),
      along(reduce.along),
      line(extents.along(along)),
      columns(extents.count == 0       ? 1
              : along == Along::first  ? extents.count / extents.first
              : along == Along::inputs ? extents.second
                                       : 1),
      whole_row(extents.axes < 2 ? extents.count : extents.channel()) {
    const uint64_t lines = extents.count == 0 ? 1 : extents.count / line;
    if (kind == Reduce::count) {
        values.assign(lines, static_cast<double>(line));
        return;
    }
    if (kind == Reduce::length) {
        const uint64_t lengths[] = {extents.axes, extents.first, extents.last, extents.second, extents.second};
        values.assign(1, static_cast<double>(lengths[static_cast<int>(along)]));
        return;
    }
    if (is_kept()) return;
    if (reduce.selects()) {
        selection = std::make_unique<Selection>(extents.count, k, key_bits, kind == Reduce::top);
        return;
    }
    if (!is_extreme()) {
        lanes.resize(kReduceLanes * columns);
        chunk.resize(columns);
    }
    total.resize(columns);
    values.reserve(lines);
    begin_line();
    if (extents.count == 0) values = total;  // one value that nothing meets
}

void Accumulator::begin_line() {
    const double infinity = std::numeric_limits<double>::infinity();
    std::fill(total.begin(), total.end(), kind == Reduce::minimum ? infinity : is_extreme() ? -infinity : 0);
    position = 0;
}

void Accumulator::advance(uint64_t elements) {
    position += elements;
    if (columns > 1 && position % columns != 0) return;  // within a row
    const uint64_t in_line = position / columns;
    if (!is_extreme() && (in_line % kReduceBlock == 0 || in_line == line)) fold();
    end_block(in_line);
}

void Accumulator::add_block(double sum, uint64_t elements) {
    chunk[0] += sum;
    position += elements;
    end_block(position);
}

void Accumulator::add_chunk(double found, uint64_t elements) {
    if (is_extreme()) {
        const bool beyond = kind == Reduce::minimum ? found < total[0] : found > total[0];
        if (beyond || found != found) total[0] = found;
    } else {
        total[0] += found;
    }
    position += elements;
    end_block(position);
}

void Accumulator::fold() {
    for (size_t c = 0; c < columns; ++c) chunk[c] += sum_of_lanes(lanes.data() + c, columns);
    std::fill(lanes.begin(), lanes.end(), 0);
}

void Accumulator::end_block(uint64_t in_line) {
    if (!is_extreme() && (in_line % kReduceChunk == 0 || in_line == line)) {
        for (size_t c = 0; c < columns; ++c) total[c] += chunk[c];
        std::fill(chunk.begin(), chunk.end(), 0);
    }
    if (in_line != line) return;
    for (double sum : total) values.push_back(canonical(is_extreme() ? sum + 0.0 : sum));
    begin_line();
}

}  // namespace sds
