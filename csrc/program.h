// A formula as a small program: what a method's Python body becomes when it is traced. Each step is one rounded
// operation; steps are evaluated in order, strip by strip, in buffers that stay in the first-level cache.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dtypes.h"
#include "error.h"

namespace sds {

#include "formulas.h"

enum class Op : int { add = 0, sub, mul, div, neg, abs, kCount };

struct Ref {
    enum Kind : int { input = 0, constant = 1, temp = 2 } kind = input;
    int index = 0;
};

struct Step {
    Op op;
    Ref a, b;  // b is ignored by unary operations
    int to;    // temp that receives the result
};

class Program {
 public:
    static constexpr int kMaxInputs = 64, kMaxTemps = 64, kMaxConstants = 256;

    // `text` is the same formula in infix form, by which a hand-fused fast path is recognised.
    Program(int inputs, std::vector<double> constants, std::vector<Step> steps, Ref result, bool wide, std::string text)
        : inputs(inputs),
          constants(std::move(constants)),
          steps(std::move(steps)),
          result(result),
          wide(wide),
          text(std::move(text)) {
        validate();
        for (double value : this->constants) narrow.push_back(static_cast<float>(value));
        Finder finder{this->text, inputs, static_cast<int>(this->constants.size())};
        formulas::for_each(finder);
        fused = finder.found;
    }

    const int inputs;
    const std::vector<double> constants;
    std::vector<float> narrow;  // the constants, rounded once: how they meet float32 tensors
    const std::vector<Step> steps;
    const Ref result;
    const bool wide;  // evaluate in float64 even when every input is narrower
    const std::string text;
    int temps = 0;
    int fused = -1;  // index in formulas::for_each, -1 when only the steps can evaluate it

 private:
    struct Finder {
        const std::string& text;
        int inputs, constants, next = 0, found = -1;
        template <class Formula>
        void operator()(Formula) {
            if (text == Formula::text && inputs == Formula::inputs && constants == Formula::constants) found = next;
            ++next;
        }
    };

    void check(Ref ref, int known_temps) const {
        const int limit = ref.kind == Ref::input      ? inputs
                          : ref.kind == Ref::constant ? static_cast<int>(constants.size())
                                                      : known_temps;
        if (ref.index < 0 || ref.index >= limit) throw Error(Code::invalid, "a program refers to what it lacks");
    }

    void validate() {
        if (inputs < 0 || inputs > kMaxInputs) throw Error(Code::invalid, "a program takes at most 64 inputs");
        if (constants.size() > kMaxConstants) throw Error(Code::invalid, "a program has at most 256 constants");
        for (const Step& step : steps) {
            if (step.op < Op::add || step.op >= Op::kCount) throw Error(Code::invalid, "unknown operation");
            check(step.a, temps);
            if (step.op < Op::neg) check(step.b, temps);
            if (step.to < 0 || step.to > temps || step.to >= kMaxTemps) {
                throw Error(Code::invalid, "a program needs too many intermediate results");
            }
            if (step.to == temps) ++temps;
        }
        check(result, temps);
    }
};

}  // namespace sds
