// The Python module _native: converts arguments, releases the GIL, maps errors. Nothing else happens here, nor in the
// other files of this name.
#include "bind.h"

#include <pybind11/stl.h>

#include "error.h"
#include "os.h"
#include "targets.h"

namespace py = pybind11;
using namespace sds;

namespace {

const char* name_of(Code code) {
    static const char* const names[] = {"invalid",   "not_found", "permission",     "not_regular", "io",
                                        "truncated", "changed",   "no_space",       "exists",      "nonfinite",
                                        "overflow",  "cancelled", "too_many_files", "damaged",     "memory"};
    return names[static_cast<int>(code)];
}

}  // namespace

// Without a GIL too: its objects may be used by any number of threads at once (file.h, engine.h and hasher.h lock what
// changes; a Program, a Mapping and the tables of targets never do).
PYBIND11_MODULE(_native, m, py::mod_gil_not_used()) {
    prepare_to_throw();
    m.doc() = "Native engine of sdsurgery: sources, sinks, programs and runs. Knows no tensor names.";

    static py::handle error_type = PyErr_NewException("sdsurgery._native.Error", PyExc_RuntimeError, nullptr);
    m.attr("Error") = error_type;
    py::register_exception_translator([](std::exception_ptr pointer) {
        try {
            if (pointer) std::rethrow_exception(pointer);
        } catch (const Error& error) {
            py::object value = error_type(as_text(error.what()));
            value.attr("code") = name_of(error.code);
            value.attr("job") = error.job;
            PyErr_SetObject(error_type.ptr(), value.ptr());
        }
    });

    bind_files(m);
    bind_hashes(m);
    bind_runs(m);
    bind_arrays(m);

    m.def("cpu_targets", [] {
        std::vector<std::pair<std::string, bool>> rows;
        for (const Target& target : targets()) rows.emplace_back(target.name, target.runs_here());
        return rows;
    });
    m.def(
        "check_target", [](const std::string& name) { return std::string(target_named(name).name); },
        py::arg("name") = "");
    m.def("free_bytes", &os::free_bytes, py::arg("folder"));
    m.def("usable_cpus", &os::usable_cpus);
    m.attr("compiler") = SDS_COMPILER;
}
