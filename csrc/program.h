// The shape of a formula: what a method's Python body becomes when it is traced. Each step is one rounded operation;
// steps are evaluated in order, strip by strip, in buffers that stay in the first-level cache. A program has no numbers
// of its own: each job brings its constants.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dtypes.h"
#include "error.h"

namespace sds {

// minimum and maximum give the second operand unless the first is smaller (larger) or NaN; comparisons give 1 or 0;
// sign gives −1, 0, 1 or NaN; where gives its second operand unless the first is 0. python/sdsurgery/functions.py says
// the same in NumPy.
enum class Op : int {
    add = 0,
    sub,
    mul,
    div,
    minimum,
    maximum,
    lt,
    le,
    gt,
    ge,
    eq,
    ne,  // of two operands
    neg,
    abs,
    sqrt,
    sign,   // of one
    where,  // of three
    kCount
};  // clang-format keeps the rows apart
SDS_HD inline int arity(Op op) { return op < Op::neg ? 2 : op < Op::where ? 1 : 3; }

struct Ref {
    enum Kind : int { input = 0, constant = 1, temp = 2 } kind = input;
    int index = 0;
};

struct Step {
    Op op;
    Ref a, b, c;  // as many as the operation has
    int to;       // temp that receives the result
};

// What identifies an expression: the same for two programs whose results are made by the same operations from the same
// inputs and constants, whatever the temps are called. (Of 64 bits: formulas.h has a handful, and each is compared with
// the number of its inputs and constants too.)
struct Shape {
    uint64_t id;

    SDS_HD static Shape mixed(uint64_t kind, uint64_t a, uint64_t b = 0, uint64_t c = 0) {
        uint64_t h = 0xcbf29ce484222325;  // FNV-1a, by words
        const uint64_t words[] = {kind, a, b, c};
        for (uint64_t word : words) {
            h = (h ^ word) * 0x100000001b3;
            h ^= h >> 29;
        }
        return {h};
    }
    SDS_HD static Shape of(Ref::Kind kind, int index) { return mixed(100 + static_cast<uint64_t>(kind), index); }
    SDS_HD static Shape of(Op op, Shape a, Shape b, Shape c) {
        const int n = arity(op);
        return mixed(static_cast<uint64_t>(op), a.id, n > 1 ? b.id : 0, n > 2 ? c.id : 0);
    }
    SDS_HD friend Shape operator+(Shape a, Shape b) { return of(Op::add, a, b, b); }
    SDS_HD friend Shape operator-(Shape a, Shape b) { return of(Op::sub, a, b, b); }
    SDS_HD friend Shape operator*(Shape a, Shape b) { return of(Op::mul, a, b, b); }
    SDS_HD friend Shape operator/(Shape a, Shape b) { return of(Op::div, a, b, b); }
};

#include "formulas.h"

// The shape of a formula of formulas.h, found by evaluating it on shapes.
template <class Formula>
uint64_t id_of() {
    Shape x[Formula::inputs], c[Formula::constants + 1];
    for (int k = 0; k < Formula::inputs; ++k) x[k] = Shape::of(Ref::input, k);
    for (int k = 0; k < Formula::constants; ++k) c[k] = Shape::of(Ref::constant, k);
    return Formula::apply(x, c).id;
}

class Program {
 public:
    static constexpr int kMaxInputs = 64, kMaxTemps = 64, kMaxConstants = 256;

    Program(int inputs, int constants, std::vector<Step> steps, Ref result, bool wide)
        : inputs(inputs), constants(constants), steps(std::move(steps)), result(result), wide(wide) {
        validate();
        id = shape();
        Finder finder{*this};
        formulas::for_each(finder);
        fused = finder.found;
    }

    const int inputs;
    const int constants;  // how many numbers a job brings
    const std::vector<Step> steps;
    const Ref result;
    const bool wide;  // evaluate in float64 even when every input is narrower
    int temps = 0;
    uint64_t id = 0;  // of its shape
    int fused = -1;   // index in formulas::for_each, -1 when only the steps can evaluate it

 private:
    struct Finder {
        const Program& program;
        int next = 0, found = -1;
        template <class Formula>
        void operator()(Formula) {
            if (program.id == id_of<Formula>() && program.inputs == Formula::inputs &&
                program.constants == Formula::constants)
                found = next;
            ++next;
        }
    };

    uint64_t shape() const {
        std::vector<Shape> made(static_cast<size_t>(temps));
        const auto at = [&made](Ref ref) {
            return ref.kind == Ref::temp ? made[static_cast<size_t>(ref.index)] : Shape::of(ref.kind, ref.index);
        };
        for (const Step& step : steps) {
            const int n = arity(step.op);
            const Shape a = at(step.a), b = n > 1 ? at(step.b) : a, c = n > 2 ? at(step.c) : a;
            made[static_cast<size_t>(step.to)] = Shape::of(step.op, a, b, c);
        }
        return at(result).id;
    }

    void check(Ref ref, int known_temps) const {
        const int limit = ref.kind == Ref::input ? inputs : ref.kind == Ref::constant ? constants : known_temps;
        if (ref.index < 0 || ref.index >= limit) throw Error(Code::invalid, "a program refers to what it lacks");
    }

    void validate() {
        if (inputs < 0 || inputs > kMaxInputs) throw Error(Code::invalid, "a program takes at most 64 inputs");
        if (constants < 0 || constants > kMaxConstants)
            throw Error(Code::invalid, "a program has at most 256 constants");
        for (const Step& step : steps) {
            if (step.op < Op::add || step.op >= Op::kCount) throw Error(Code::invalid, "unknown operation");
            check(step.a, temps);
            if (arity(step.op) > 1) check(step.b, temps);
            if (arity(step.op) > 2) check(step.c, temps);
            if (step.to < 0 || step.to > temps || step.to >= kMaxTemps) {
                throw Error(Code::invalid, "a program needs too many intermediate results");
            }
            if (step.to == temps) ++temps;
        }
        check(result, temps);
    }
};

// The constants of one job: float64 as they were given, and rounded once to float32, which is how they meet tensors.
class Numbers {
 public:
    Numbers(const Program& program, std::vector<double> values) : wide(std::move(values)) {
        if (wide.size() != static_cast<size_t>(program.constants))
            throw Error(Code::invalid, "a job brings another number of constants than its program has");
        narrow.reserve(wide.size());
        for (double value : wide) narrow.push_back(static_cast<float>(value));
    }

    const double* of(double) const { return wide.data(); }
    const float* of(float) const { return narrow.data(); }

    std::vector<double> wide;
    std::vector<float> narrow;
};

}  // namespace sds
