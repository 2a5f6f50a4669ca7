// Programs over memory instead of files: whole arrays, the last stage of a tensor for devices, computed operands, and
// single numbers.
#include <pybind11/stl.h>

#include <cstring>
#include <memory>
#include <vector>

#include "apply.h"
#include "bind.h"
#include "bind_operands.h"
#include "bind_program.h"
#include "scalars.h"

namespace py = pybind11;

namespace sds {

namespace {

double scalar(const std::string& name, double a, double b) {
    static const std::pair<const char*, double (*)(double)> functions[] = {
        {"sqrt", scalars::sqrt}, {"sin", scalars::sin}, {"cos", scalars::cos},
        {"acos", scalars::acos}, {"exp", scalars::exp}, {"log", scalars::log}};
    for (const auto& [known, function] : functions) {
        if (name == known) return function(a);
    }
    if (name == "pow") return scalars::pow(a, b);
    throw Error(Code::invalid, "unknown scalar function");
}

std::pair<uint64_t, uint64_t> apply_at(const Program& program, std::vector<double> constants,
                                       const std::vector<std::pair<uintptr_t, int>>& operands, uintptr_t out,
                                       int out_dtype, uint64_t count, int overflow, unsigned threads,
                                       const std::string& target, const std::vector<uint64_t>& shape) {
    std::vector<Operand> native;
    for (const auto& [address, dtype] : operands)
        native.push_back({reinterpret_cast<const uint8_t*>(address), dtype_from(dtype)});
    const DType to = dtype_from(out_dtype);
    const Numbers numbers(program, std::move(constants));
    Extents extents = Extents::of(shape);
    if (!program.in_stages()) extents.count = count;
    if (extents.count != count) throw Error(Code::invalid, "the shape is of another tensor");
    py::gil_scoped_release release;
    const Tally tally = apply(program, numbers, native, reinterpret_cast<uint8_t*>(out), to, extents,
                              static_cast<Overflow>(overflow), threads, target);
    return {tally.nonfinite, tally.overflow};
}

// What one operand after the other is computed by.
struct Computing {
    Decoder decoder;
    Multiplier multiplier;

    // Float32 of `count` elements of an operand that is not stored as it is, from element `first` on.
    const float* operator()(const JobOperand& operand, const std::vector<std::shared_ptr<Source>>& sources,
                            uint64_t first, uint64_t count, const Target& target) {
        const uint64_t all = operand.encoding() ? operand.encoding()->elements() : operand.low_rank()->elements();
        if (first > all || count > all - first) throw Error(Code::invalid, "a job reads past the end of a tensor");
        if (operand.low_rank()) {
            multiplier.prepare(operand.shared<LowRank>(), sources, target);
            return multiplier.make(target, first, count);
        }
        decoder.prepare(operand.shared<Encoding>(), sources);
        const auto [begin, bytes] = decoder.range(first, count);
        uint8_t* const codes = decoder.room(bytes);
        sources[operand.source]->read(codes, bytes, operand.offset + begin);
        return decoder.decode(target, codes, first, count);
    }
};

void check_computed(const JobOperand& operand, const std::vector<std::shared_ptr<Source>>& sources) {
    if (operand.encoding()) operand.encoding()->check(sources);
    if (operand.low_rank()) operand.low_rank()->check(sources);
}

py::tuple as_pair(Ref ref) { return py::make_tuple(static_cast<int>(ref.kind), ref.index); }

// What is left of a program once its stages are worked off over whole tensors: for devices, which evaluate elements.
struct LastStage {
    std::shared_ptr<Program> program;
    Numbers numbers;
    std::unique_ptr<Stages> stages;
    const Target& target;

    const Elementwise& left() const { return stages->last(); }
    py::tuple steps() const {
        py::list found;
        for (const Step& step : left().program->steps) {
            py::list args;
            const Ref refs[] = {step.a, step.b, step.c};
            for (int k = 0; k < arity(step.op); ++k) args.append(as_pair(refs[k]));
            found.append(py::make_tuple(static_cast<int>(step.op), py::tuple(args), step.to));
        }
        return py::tuple(found);
    }
    // Elements of a generated operand, in the dtype of float32 or float64 arithmetic.
    void generate(size_t operand, uint64_t first, const py::handle& buffer, int dtype) const {
        const DType kind = dtype_from(dtype);
        if (operand >= left().generated.size() || (kind != DType::f32 && kind != DType::f64))
            throw Error(Code::invalid, "no such operand");
        const Bytes into(buffer, true);
        const size_t count = static_cast<size_t>(into.buffer.len) / size_of(kind);
        py::gil_scoped_release release;
        const os::IeeeMode ieee;
        target.generate(left().generated[operand], first, count, static_cast<uint8_t*>(into.buffer.buf), kind);
    }
};

std::unique_ptr<LastStage> last_stage(std::shared_ptr<Program> program, std::vector<double> constants,
                                      const std::vector<std::shared_ptr<Source>>& sources, const py::sequence& operands,
                                      const std::vector<uint64_t>& shape, const py::sequence& mixings,
                                      const std::string& target) {
    std::vector<std::shared_ptr<const Mixing>> mixed;
    for (const py::handle& item : mixings) {
        mixed.push_back(make_mixing(item));
        mixed.back()->check(sources);
    }
    std::vector<JobOperand> parts;
    std::vector<DType> dtypes;
    for (const py::handle& item : operands) {
        parts.push_back(make_operand(item));
        dtypes.push_back(parts.back().dtype());
        if (parts.back().source >= sources.size()) throw Error(Code::invalid, "a job refers to a missing source");
        check_computed(parts.back(), sources);
    }
    if (parts.size() != static_cast<size_t>(program->inputs)) throw Error(Code::invalid, "wrong operand count");
    Numbers numbers(*program, std::move(constants));
    std::unique_ptr<LastStage> found(new LastStage{program, std::move(numbers), nullptr, target_named(target)});
    py::gil_scoped_release release;
    const os::IeeeMode ieee;
    Mixers mixers;
    for (const auto& mixing : mixed) mixers.push_back(std::make_shared<const Mixer>(mixing, sources, found->target));
    found->stages = std::make_unique<Stages>(*program, found->numbers, Extents::of(shape), dtypes, found->target,
                                             std::move(mixers));
    Scratch scratch;
    std::vector<std::vector<uint8_t>> buffers(parts.size());
    std::vector<Computing> computing(parts.size());
    Operand here[Program::kMaxInputs];
    found->stages->work_off(scratch, [&](uint64_t first, uint64_t n) {
        for (size_t k = 0; k < parts.size(); ++k) {
            const JobOperand& part = parts[k];
            Source& source = *sources[part.source];
            const uint64_t size = size_of(part.element);
            buffers[k].resize((Stages::kStretch + 2) * size);
            if (part.is_made()) {
                const float* const made = computing[k](part, sources, first, n, found->target);
                here[k] = {reinterpret_cast<const uint8_t*>(made), dtypes[k]};
            } else if (part.view()) {
                here[k] = {source.gather(*part.view(), part.offset, first * size, n * size, buffers[k].data()),
                           dtypes[k]};
            } else {
                source.read(buffers[k].data(), n * size, part.offset + first * size);
                here[k] = {buffers[k].data(), dtypes[k]};
            }
        }
        return here;
    });
    found->stages->last();
    return found;
}

}  // namespace

void bind_arrays(py::module_& m) {
    py::class_<LastStage>(m, "LastStage")
        .def_property_readonly("steps", &LastStage::steps)
        .def_property_readonly("result", [](const LastStage& self) { return as_pair(self.left().program->result); })
        .def_property_readonly("constants", [](const LastStage& self) { return self.left().numbers->wide; })
        .def_property_readonly("generated", [](const LastStage& self) { return self.left().generated.size(); })
        .def_property_readonly("fused", [](const LastStage& self) { return self.left().program->fused >= 0; })
        .def("generate", &LastStage::generate, py::arg("operand"), py::arg("first"), py::arg("buffer"),
             py::arg("dtype"));

    m.def("apply", &apply_at, py::arg("program"), py::arg("constants"), py::arg("operands"), py::arg("out"),
          py::arg("out_dtype"), py::arg("count"), py::arg("overflow") = 0, py::arg("threads") = 0,
          py::arg("target") = "", py::arg("shape") = std::vector<uint64_t>());
    m.def("last_stage", &last_stage, py::arg("program"), py::arg("constants"), py::arg("sources"), py::arg("operands"),
          py::arg("shape"), py::arg("mixings") = py::tuple(), py::arg("target") = "");
    // Float32 of an operand that is not stored as it is, from element `first` on, as much as the buffer has room for.
    m.def(
        "compute_into",
        [](const std::vector<std::shared_ptr<Source>>& sources, const py::handle& operand, uint64_t first,
           const py::handle& buffer, const std::string& target) {
            const Bytes into(buffer, true);
            const JobOperand made = make_operand(operand);
            py::gil_scoped_release release;
            const os::IeeeMode ieee;
            if (made.source >= sources.size() || !made.is_made()) throw Error(Code::invalid, "nothing to compute");
            check_computed(made, sources);
            const size_t bytes = static_cast<size_t>(into.buffer.len);
            Computing computing;
            std::memcpy(into.buffer.buf, computing(made, sources, first, bytes / sizeof(float), target_named(target)),
                        bytes);
        },
        py::arg("sources"), py::arg("operand"), py::arg("first"), py::arg("buffer"), py::arg("target") = "");
    m.def("scalar", &scalar, py::arg("name"), py::arg("a"), py::arg("b") = 0.0);
}

}  // namespace sds
