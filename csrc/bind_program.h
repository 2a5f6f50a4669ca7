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
    if (kind < 0 || kind > 2) throw Error(Code::invalid, "unknown kind of reference");
    return {static_cast<Ref::Kind>(kind), index};
}

inline std::shared_ptr<Program> make_program(int inputs, int constants, const pybind11::sequence& steps,
                                             const pybind11::handle& result, bool wide) {
    std::vector<Step> native;
    for (const pybind11::handle& item : steps) {
        const pybind11::tuple step = pybind11::cast<pybind11::tuple>(item);
        const pybind11::tuple args = pybind11::cast<pybind11::tuple>(step[1]);
        Step made{static_cast<Op>(step[0].cast<int>()), {}, {}, {}, step[2].cast<int>()};
        if (made.op < Op::add || made.op >= Op::kCount || static_cast<int>(args.size()) != arity(made.op))
            throw Error(Code::invalid, "an operation with another number of arguments");
        Ref* const refs[] = {&made.a, &made.b, &made.c};
        for (size_t k = 0; k < args.size(); ++k) *refs[k] = ref_from(args[k]);
        native.push_back(made);
    }
    return std::make_shared<Program>(inputs, constants, std::move(native), ref_from(result), wide);
}

}  // namespace sds
