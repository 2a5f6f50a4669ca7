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

inline std::shared_ptr<Program> make_program(int inputs, std::vector<double> constants, const pybind11::sequence& steps,
                                             const pybind11::handle& result, bool wide, std::string text) {
    std::vector<Step> native;
    for (const pybind11::handle& item : steps) {
        const pybind11::tuple step = pybind11::cast<pybind11::tuple>(item);
        native.push_back(
            {static_cast<Op>(step[0].cast<int>()), ref_from(step[1]), ref_from(step[2]), step[3].cast<int>()});
    }
    return std::make_shared<Program>(inputs, std::move(constants), std::move(native), ref_from(result), wide,
                                     std::move(text));
}

}  // namespace sds
