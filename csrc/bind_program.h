// How Python hands over a dtype and a traced formula: shared by the modules _native and _cuda.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>

#include "program.h"

namespace sds {

inline DType dtype_from(int code) {
    if (code < 0 || code >= kDTypes) throw Error(Code::invalid, "unknown dtype code");
    return static_cast<DType>(code);
}

inline Ref ref_from(const pybind11::handle& pair) {
    const auto [kind, index] = pair.cast<std::pair<int, int>>();
    if (kind < 0 || kind >= Ref::kCount) throw Error(Code::invalid, "unknown kind of reference");
    return {static_cast<Ref::Kind>(kind), index};
}

inline std::vector<Step> steps_from(const pybind11::handle& steps) {
    std::vector<Step> native;
    for (const pybind11::handle& item : pybind11::cast<pybind11::sequence>(steps)) {
        const pybind11::tuple step = pybind11::cast<pybind11::tuple>(item);
        const pybind11::tuple args = pybind11::cast<pybind11::tuple>(step[1]);
        Step made{static_cast<Op>(step[0].cast<int>()), {}, {}, {}, step[2].cast<int>()};
        if (made.op < Op::add || made.op >= Op::kCount || static_cast<int>(args.size()) != arity(made.op))
            throw Error(Code::invalid, "an operation with the wrong number of arguments");
        Ref* const refs[] = {&made.a, &made.b, &made.c};
        for (size_t k = 0; k < args.size(); ++k) *refs[k] = ref_from(args[k]);
        native.push_back(made);
    }
    return native;
}

// ((operation, arguments, temp), …), ((reduction, along, arguments), …), ((function, arguments), …).
inline Stage stage_from(const pybind11::handle& item) {
    const pybind11::tuple parts = pybind11::cast<pybind11::tuple>(item);
    Stage stage{steps_from(parts[0]), {}, {}};
    for (const pybind11::handle& part : pybind11::cast<pybind11::sequence>(parts[1])) {
        const pybind11::tuple row = pybind11::cast<pybind11::tuple>(part);
        const pybind11::tuple args = pybind11::cast<pybind11::tuple>(row[2]);
        const int kind = row[0].cast<int>(), along = row[1].cast<int>();
        if (kind == Reduce::whole) {
            Reduce made{Reduce::whole, Along::each, {}, {}, along, {}};
            for (const pybind11::handle& arg : args) made.args.push_back(ref_from(arg));
            stage.reductions.push_back(std::move(made));
            continue;
        }
        if (kind == Reduce::mix) {
            if (args.size() != 1) throw Error(Code::invalid, "unknown reduction");
            stage.reductions.push_back({Reduce::mix, Along::each, ref_from(args[0]), {}, along});
            continue;
        }
        if (kind < 0 || kind >= Reduce::kCount || along < 0 || along >= static_cast<int>(Along::kCount) ||
            static_cast<int>(args.size()) != arity(static_cast<Reduce::Kind>(kind)))
            throw Error(Code::invalid, "unknown reduction");
        Reduce made{static_cast<Reduce::Kind>(kind), static_cast<Along>(along), {}, {}};
        if (args.size() > 0) made.a = ref_from(args[0]);
        if (args.size() > 1) made.b = ref_from(args[1]);
        stage.reductions.push_back(made);
    }
    for (const pybind11::handle& part : pybind11::cast<pybind11::sequence>(parts[2])) {
        const pybind11::tuple row = pybind11::cast<pybind11::tuple>(part);
        const pybind11::tuple args = pybind11::cast<pybind11::tuple>(row[1]);
        ScalarStep made{row[0].cast<int>(), {}};
        if (made.op < 0 || made.op >= static_cast<int>(ScalarFunction::kEnd) ||
            static_cast<int>(args.size()) != scalar_arity(made.op))
            throw Error(Code::invalid, "unknown function of scalars");
        for (size_t k = 0; k < args.size(); ++k) made.args[k] = ref_from(args[k]);
        stage.scalars.push_back(made);
    }
    return stage;
}

// (kind, along, arguments).
inline Made made_from(const pybind11::handle& item) {
    const pybind11::tuple row = pybind11::cast<pybind11::tuple>(item);
    const pybind11::tuple args = pybind11::cast<pybind11::tuple>(row[2]);
    const int kind = row[0].cast<int>(), along = row[1].cast<int>();
    if (kind < 0 || kind >= Made::kCount || along < 0 || along >= static_cast<int>(Along::kCount) ||
        static_cast<int>(args.size()) != arity(static_cast<Made::Kind>(kind)))
        throw Error(Code::invalid, "unknown generated operand");
    Made made{static_cast<Made::Kind>(kind), static_cast<Along>(along), {}};
    for (size_t k = 0; k < args.size(); ++k) made.args[k] = ref_from(args[k]);
    return made;
}

// (number of arrays, function): called with a list of buffers, a list of numbers, the shape, whether the buffers hold
// float64, and the buffer to fill.
inline WholeFunction function_from(const pybind11::handle& item) {
    const pybind11::tuple row = pybind11::cast<pybind11::tuple>(item);
    const std::shared_ptr<pybind11::object> held(new pybind11::object(row[1]), [](pybind11::object* object) {
        const pybind11::gil_scoped_acquire gil;
        delete object;
    });
    const auto view = [](const WholeFunction::Bytes& bytes) {
        return pybind11::memoryview::from_memory(const_cast<uint8_t*>(bytes.data()),
                                                 static_cast<pybind11::ssize_t>(bytes.size()), false);
    };
    const auto call = [held, view](const std::vector<WholeFunction::Bytes>& arrays, const std::vector<double>& numbers,
                                   const std::vector<uint64_t>& shape, bool wide, WholeFunction::Bytes& out) {
        const pybind11::gil_scoped_acquire gil;
        try {
            pybind11::list views;
            for (const WholeFunction::Bytes& array : arrays) views.append(view(array));
            (*held)(views, numbers, shape, wide, view(out));
        } catch (pybind11::error_already_set& error) {
            throw Error(Code::invalid, std::string("a method's function failed: ") + error.what());
        }
    };
    return {row[0].cast<int>(), call};
}

inline std::shared_ptr<Program> make_program(int inputs, int constants, const pybind11::sequence& steps,
                                             const pybind11::handle& result, bool wide,
                                             const pybind11::sequence& stages, const pybind11::sequence& made,
                                             int generated, const pybind11::sequence& functions) {
    std::vector<Stage> native;
    for (const pybind11::handle& item : stages) native.push_back(stage_from(item));
    std::vector<Made> operands;
    for (const pybind11::handle& item : made) operands.push_back(made_from(item));
    std::vector<WholeFunction> whole;
    for (const pybind11::handle& item : functions) whole.push_back(function_from(item));
    return std::make_shared<Program>(inputs, constants, steps_from(steps), ref_from(result), wide, std::move(native),
                                     std::move(operands), inputs - generated, std::move(whole));
}

}  // namespace sds
