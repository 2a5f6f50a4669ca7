// Program and Run, as Python has them: a plan's jobs, and what became of them.
#include <pybind11/stl.h>

#include <algorithm>
#include <map>
#include <memory>
#include <vector>

#include "bind.h"
#include "bind_operands.h"
#include "bind_program.h"
#include "engine.h"

namespace py = pybind11;

namespace sds {

namespace {

// Nearly all jobs have nothing of it, and then share one.
std::shared_ptr<const Staged> make_staged(const py::handle& shape, uint64_t read, const py::tuple& mixings) {
    static const auto none = std::make_shared<const Staged>(Staged{Extents::of({}), {}, 0});
    const auto sizes = shape.cast<std::vector<uint64_t>>();
    if (sizes.empty() && read == 0 && mixings.empty()) return none;
    Staged made{Extents::of(sizes), {}, read};
    for (const py::handle& mixing : mixings) made.mixings.push_back(make_mixing(mixing));
    return std::make_shared<const Staged>(std::move(made));
}

// A Job is (kind, index, out dtype, out offset, count, (operand, …), (constant, …), shape, elements that its stages
// read or 0, (mixing, …)); NumbersOfJobs takes the constants.
Job make_job(const py::handle& item) {
    const py::tuple row = py::cast<py::tuple>(item);
    Job job{static_cast<Job::Kind>(row[0].cast<int>()),
            row[1].cast<uint32_t>(),
            dtype_from(row[2].cast<int>()),
            -1,
            row[3].cast<uint64_t>(),
            row[4].cast<uint64_t>(),
            {}};
    if (job.kind < Job::copy || job.kind > Job::reduce) throw Error(Code::invalid, "unknown kind of job");
    const py::tuple operands = py::cast<py::tuple>(row[5]);
    job.operands.reserve(operands.size());
    for (const py::handle& operand : operands) job.operands.push_back(make_operand(operand));
    if (row.size() > 7) {
        const uint64_t read = row.size() > 8 ? row[8].cast<uint64_t>() : 0;
        job.staged = make_staged(row[7], read, row.size() > 9 ? py::cast<py::tuple>(row[9]) : py::tuple());
    }
    return job;
}

// The constants of jobs. Those of a merge mostly share one tuple: each is converted once, and held so long that no
// other gets its address.
class NumbersOfJobs {
 public:
    explicit NumbersOfJobs(const std::vector<std::shared_ptr<Program>>& programs) : programs_(programs) {}

    // For each output those that are given.
    std::shared_ptr<const NumbersOfOutputs> of(const Job& job, std::vector<py::object> constants) {
        if (job.index >= programs_.size()) throw Error(Code::invalid, "a job refers to a missing program");
        std::vector<PyObject*> key;
        for (const py::object& each : constants) key.push_back(each.ptr());
        auto& [held, numbers] = known_[{job.index, std::move(key)}];
        if (!numbers) {
            NumbersOfOutputs made;
            for (const py::object& each : constants)
                made.push_back(std::make_shared<Numbers>(*programs_[job.index], each.cast<std::vector<double>>()));
            numbers = std::make_shared<const NumbersOfOutputs>(std::move(made));
            held = std::move(constants);
        }
        return numbers;
    }

 private:
    const std::vector<std::shared_ptr<Program>>& programs_;
    std::map<std::pair<uint32_t, std::vector<PyObject*>>,
             std::pair<std::vector<py::object>, std::shared_ptr<const NumbersOfOutputs>>>
        known_;
};

std::shared_ptr<Run> make_run(std::vector<std::shared_ptr<Source>> sources,
                              std::vector<std::shared_ptr<Program>> programs, const py::sequence& fills,
                              const py::iterable& jobs, const py::sequence& checks,
                              const std::vector<std::pair<uint64_t, uint64_t>>& sums, std::shared_ptr<Sink> sink,
                              unsigned threads, uint64_t tile_bytes, int io, int overflow, bool refuse_overflow,
                              bool refuse_nonfinite, bool refuse_damaged, bool start_flushing,
                              const std::string& target, const py::sequence& further) {
    std::vector<Output> outputs;
    if (sink) outputs.push_back({std::move(sink), 0});
    std::vector<py::sequence> versions;
    for (const py::handle& item : further) {
        const py::tuple output = py::cast<py::tuple>(item);
        outputs.push_back({output[0].cast<std::shared_ptr<Sink>>(), output[1].cast<int64_t>()});
        versions.push_back(py::cast<py::sequence>(output[2]));
    }
    std::vector<Fill> rules;
    for (const py::handle& item : fills) {
        const auto [seed, mean, deviation] = item.cast<std::tuple<uint64_t, double, double>>();
        rules.push_back({seed, mean, deviation});
    }
    std::vector<Job> native;
    native.reserve(static_cast<size_t>(std::max<Py_ssize_t>(0, PyObject_LengthHint(jobs.ptr(), 0))));
    NumbersOfJobs numbers(programs);
    for (const py::handle& item : jobs) {
        Job job = make_job(item);
        if (job.kind == Job::evaluate) {
            std::vector<py::object> constants{py::cast<py::tuple>(item)[6]};
            for (const py::sequence& output : versions) constants.push_back(output[native.size()]);
            job.numbers = numbers.of(job, std::move(constants));
        }
        native.push_back(std::move(job));
    }
    std::vector<Check> known;
    for (const py::handle& item : checks) {
        const py::tuple row = py::cast<py::tuple>(item);
        known.push_back({row[0].cast<uint32_t>(), row[1].cast<uint64_t>(), row[2].cast<uint64_t>(),
                         row[3].cast<uint32_t>(), row[4].cast<std::vector<std::pair<size_t, size_t>>>()});
    }
    const RunOptions options{threads,         tile_bytes,       static_cast<Io>(io), static_cast<Overflow>(overflow),
                             refuse_overflow, refuse_nonfinite, refuse_damaged,      start_flushing,
                             target};
    return std::make_shared<Run>(std::move(sources), std::move(programs), std::move(rules), std::move(native),
                                 std::move(known), sums, std::move(outputs), options);
}

}  // namespace

void bind_runs(py::module_& m) {
    py::class_<Program, std::shared_ptr<Program>>(m, "Program")
        .def(py::init(&make_program), py::arg("inputs"), py::arg("constants"), py::arg("steps"), py::arg("result"),
             py::arg("wide"), py::arg("stages") = py::tuple(), py::arg("made") = py::tuple(), py::arg("generated") = 0,
             py::arg("functions") = py::tuple())
        .def_property_readonly("fused", [](const Program& self) { return self.fused >= 0; })
        .def_readonly("id", &Program::id)
        .def_readonly("constants", &Program::constants)
        .def_readonly("inputs", &Program::inputs);

    py::class_<Run, std::shared_ptr<Run>>(m, "Run")
        .def(py::init(&make_run), py::kw_only(), py::arg("sources"), py::arg("programs"), py::arg("fills"),
             py::arg("jobs"), py::arg("checks") = py::tuple(),
             py::arg("sums") = std::vector<std::pair<uint64_t, uint64_t>>(), py::arg("sink").none(true),
             py::arg("threads") = 0, py::arg("tile_bytes") = 0, py::arg("io") = 0, py::arg("overflow") = 0,
             py::arg("refuse_overflow") = false, py::arg("refuse_nonfinite") = false, py::arg("refuse_damaged") = true,
             py::arg("start_flushing") = false, py::arg("target") = "", py::arg("further") = py::tuple())
        .def("start", &Run::start, py::call_guard<py::gil_scoped_release>())
        .def("wait", &Run::wait, py::arg("seconds"), py::call_guard<py::gil_scoped_release>())
        .def("cancel", &Run::cancel)
        .def("finish", &Run::finish, py::call_guard<py::gil_scoped_release>())
        .def_property_readonly("bytes_done", &Run::bytes_done)
        .def("sums", &Run::sums)
        .def("damaged", &Run::damaged)
        .def_property_readonly("workers", &Run::workers)
        .def_property_readonly("target", [](const Run& self) { return std::string(self.target()); })
        .def_property_readonly("buffer_bytes", &Run::buffer_bytes)
        .def_property_readonly("io",
                               [](const Run& self) {
                                   std::vector<int> codes;
                                   for (Io io : self.io()) codes.push_back(static_cast<int>(io));
                                   return codes;
                               })
        // Of the jobs that are reductions: (job, dot, aa, bb, dd, a max, b max, difference max, a nonfinite,
        // b nonfinite, equal).
        .def("reductions",
             [](const Run& self) {
                 py::list rows;
                 for (size_t i = 0; i < self.jobs().size(); ++i) {
                     if (self.jobs()[i].kind != Job::reduce) continue;
                     const Reduction found = self.reduction(i);
                     const Sums& sums = found.sums;
                     rows.append(py::make_tuple(i, sums.dot, sums.aa, sums.bb, sums.dd, found.a_max, found.b_max,
                                                found.difference_max, found.a_nonfinite, found.b_nonfinite,
                                                found.equal));
                 }
                 return rows;
             })
        // Of a run without a sink, the jobs whose program has stages: (job, their whole-tensor values).
        .def("values",
             [](const Run& self) {
                 std::vector<std::pair<size_t, std::vector<double>>> rows;
                 for (size_t i = 0; i < self.jobs().size(); ++i) {
                     std::vector<double> found = self.values(i);
                     if (!found.empty()) rows.emplace_back(i, std::move(found));
                 }
                 return rows;
             })
        // Only an output's jobs that met something: (job, nonfinite, overflow).
        .def(
            "tallies",
            [](const Run& self, size_t output) {
                std::vector<std::tuple<size_t, uint64_t, uint64_t>> rows;
                const std::vector<Tally> tallies = self.tallies().at(output);
                for (size_t i = 0; i < tallies.size(); ++i) {
                    if (tallies[i].nonfinite || tallies[i].overflow)
                        rows.emplace_back(i, tallies[i].nonfinite, tallies[i].overflow);
                }
                return rows;
            },
            py::arg("output") = 0);
}

}  // namespace sds
