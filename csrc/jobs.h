// What a run is asked to do: byte ranges in, a formula, a byte range out.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <variant>
#include <vector>

#include "file.h"
#include "mixing.h"
#include "stages.h"
#include "targets.h"
#include "view.h"

namespace sds {

// There may be hundreds of thousands of both: what few have lies elsewhere.
struct JobOperand {
    template <class T>
    using Shared = std::shared_ptr<const T>;

    uint32_t source;
    Element element;
    uint64_t offset;     // in the source's file, any byte
    int32_t check = -1;  // the Check that it is a part of
    // The View of a tensor that is not contiguous. Of an encoded weight its Encoding: `offset` is that of its codes,
    // and `element` float32, which a formula sees. Of what an adapter's factors make the LowRank: nothing of the
    // operand itself is stored; `element` is float32.
    std::variant<std::monostate, Shared<View>, Shared<Encoding>, Shared<LowRank>> how = {};

    template <class T>
    Shared<T> shared() const {
        const auto* const found = std::get_if<Shared<T>>(&how);
        return found ? *found : nullptr;
    }
    const View* view() const { return held<View>(); }
    const Encoding* encoding() const { return held<Encoding>(); }
    const LowRank* low_rank() const { return held<LowRank>(); }
    bool is_made() const { return encoding() || low_rank(); }

    DType dtype() const { return static_cast<DType>(element); }  // of a formula's operand: one of the floats

 private:
    template <class T>
    const T* held() const {
        const auto* const found = std::get_if<Shared<T>>(&how);
        return found ? found->get() : nullptr;
    }
};

using NumbersOfOutputs = std::vector<std::shared_ptr<const Numbers>>;  // one for each output

// What only a program in stages needs of a job: the tensor's extents, what is mixed of it, and, where they are not as
// many as the job makes, how many elements the stages read.
struct Staged {
    Extents extents;
    std::vector<std::shared_ptr<const Mixing>> mixings;
    uint64_t read = 0;
};

struct Job {
    // A reduction (reduce.h) writes nothing. Its "output" is a range as long as its first operand, in a run without
    // a sink: by it tiles are shared out and progress is counted.
    enum Kind : int { copy = 0, evaluate = 1, fill = 2, reduce = 3 } kind;
    uint32_t index;       // of the program or the fill rule
    DType out_dtype;      // ignored by copy and reduce
    int32_t sum;          // the summed range that it lies in, or -1
    uint64_t out_offset;  // in the output file
    uint64_t count;       // elements; bytes for copy
    std::vector<JobOperand> operands;
    std::shared_ptr<const NumbersOfOutputs> numbers = nullptr;  // of an evaluation; many jobs share them
    std::shared_ptr<const Staged> staged = nullptr;

    uint64_t elements() const { return staged && staged->read ? staged->read : count; }

    uint64_t element_bytes() const { return kind == reduce ? operand_bytes(0) : kind == copy ? 1 : size_of(out_dtype); }
    uint64_t operand_bytes(size_t k) const { return kind == copy ? 1 : size_of(operands[k].element); }
    uint64_t out_end() const { return out_offset + count * element_bytes(); }
};

// A file that a run writes. Several are alike but for the numbers of their jobs: `shift` is how much further behind
// their data lie than in the first.
struct Output {
    std::shared_ptr<Sink> sink;
    int64_t shift = 0;
};

// A range of a source whose CRC-32 is known; `parts` (job, operand) read it exactly once, without gaps.
struct Check {
    uint32_t source;
    uint64_t offset, bytes;
    uint32_t crc;
    std::vector<std::pair<size_t, size_t>> parts;
};

// The jobs themselves. Throws `invalid`, with a job's index, unless they are in the order of their output, within it
// (without outputs anywhere), and each reads what exists.
std::vector<Job> admitted(std::vector<Job> jobs, const std::vector<std::shared_ptr<Source>>& sources,
                          const std::vector<std::shared_ptr<Program>>& programs, const std::vector<Fill>& fills,
                          const std::vector<Output>& outputs);

}  // namespace sds
