// One reduction of a stage over one tensor, in the order that stages.h promises.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "program.h"
#include "select.h"

namespace sds {

struct Extents {
    uint64_t count = 0;                        // elements of the tensor
    uint64_t first = 1, second = 1, last = 1;  // of its axes; a tensor of one axis is a row, to the second too
    uint64_t axes = 0;
    std::vector<uint64_t> shape = {};

    static Extents of(const std::vector<uint64_t>& shape) {
        Extents made{1, 1, 1, 1, shape.size(), shape};
        for (uint64_t size : shape) made.count *= size;
        if (shape.empty()) return made;
        made.first = shape.front();
        made.second = shape.size() > 1 ? shape[1] : shape.front();
        made.last = shape.back();
        return made;
    }
    uint64_t channel() const { return first ? count / first : 0; }  // elements of one
    uint64_t along(Along axis) const {                              // that a reduction adds up
        switch (axis) {
            case Along::all: return count;
            case Along::first: return first;
            case Along::last: return last;
            case Along::inputs: return second ? count / second : 0;
            default: return channel();
        }
    }
};

constexpr size_t kSamplePass = ~size_t{0};  // the one before the first, for what wants_sample()

// The sum of numbers in the order of a tensor's (reduce.h); a NaN is the canonical one.
double sum_in_order(const std::vector<double>& numbers);

// Elements of one reduction, added in order as they come; `values` are complete once all have been.
class Accumulator {
 public:
    Accumulator(const Reduce& reduce, Extents extents, double k, int key_bits);

    const Reduce::Kind kind;
    const Along along;
    const uint64_t line;                      // elements that one value is made of
    const uint64_t columns;                   // of values that are made side by side: along first and inputs, else 1
    uint64_t position = 0;                    // elements so far: of the line, or along the first axis of the tensor
    std::vector<double> lanes, chunk, total;  // eight lanes, one and one for each column
    std::vector<double> values;

    std::unique_ptr<Selection> selection;  // of kth and top: any number of passes

    bool is_kept() const { return kind == Reduce::whole || kind == Reduce::mix; }
    bool is_extreme() const { return kind == Reduce::minimum || kind == Reduce::maximum; }
    bool adds_lines() const {
        return (kind == Reduce::sum || kind == Reduce::dot) && along != Along::first && along != Along::inputs;
    }
    bool wants(size_t pass) const {
        if (pass == kSamplePass) return selection && selection->wants_sample();
        return selection ? selection->in_work() : pass == 0 && (expressions(kind) > 0 || is_kept());
    }
    std::vector<WholeFunction::Bytes> arrays;  // of whole and mix: the elements of their expressions
    const uint64_t whole_row;                  // along inputs: elements of one of the tensor
    std::vector<double> row;                   // and the terms of one, so far
    void advance(uint64_t elements);  // after what lies within a block (a row of the columns) has been added to `lanes`
    void add_block(double sum, uint64_t elements);    // a whole block of a line, or the last one
    void add_chunk(double found, uint64_t elements);  // a whole chunk of the tensor, or the last one

 private:
    void begin_line();
    void fold();  // the lanes into the chunk
    void end_block(uint64_t in_line);
};

}  // namespace sds
