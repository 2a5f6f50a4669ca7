// The Python module _native: converts arguments, releases the GIL, maps errors. Nothing else happens here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <map>

#include "apply.h"
#include "bind_operands.h"
#include "bind_program.h"
#include "engine.h"
#include "hasher.h"
#include "scalars.h"

namespace py = pybind11;
using namespace sds;

namespace {

const char* name_of(Code code) {
    static const char* const names[] = {"invalid",   "not_found", "permission",     "not_regular", "io",
                                        "truncated", "changed",   "no_space",       "exists",      "nonfinite",
                                        "overflow",  "cancelled", "too_many_files", "damaged"};
    return names[static_cast<int>(code)];
}

py::str as_text(const std::string& bytes) {  // file names may hold any bytes
    return py::reinterpret_steal<py::str>(
        PyUnicode_DecodeUTF8(bytes.data(), static_cast<Py_ssize_t>(bytes.size()), "surrogateescape"));
}

struct Bytes {  // a contiguous Python buffer, held for the length of a call
    explicit Bytes(py::handle object, bool writable) {
        if (PyObject_GetBuffer(object.ptr(), &buffer, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE) != 0) {
            throw py::error_already_set();
        }
    }
    ~Bytes() { PyBuffer_Release(&buffer); }
    Bytes(const Bytes&) = delete;
    Py_buffer buffer;
};

// A source of buffers, which count as if they lay one behind the other. It holds them, and copies nothing.
std::shared_ptr<Source> source_of_buffers(const py::args& buffers) {
    using Held = std::vector<std::unique_ptr<Bytes>>;
    // The last user may be a thread without the GIL.
    const auto release = [](Held* held) {
        const py::gil_scoped_acquire acquire;
        delete held;
    };
    const std::shared_ptr<Held> held(new Held, release);
    std::vector<MemoryPiece> pieces;
    for (const py::handle& buffer : buffers) {
        held->push_back(std::make_unique<Bytes>(buffer, false));
        const Py_buffer& view = held->back()->buffer;
        pieces.push_back({static_cast<const uint8_t*>(view.buf), static_cast<uint64_t>(view.len)});
    }
    return std::make_shared<Source>(pieces, held);
}

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

Element element_from(int code) {
    if (code < 0 || code >= kElements) throw Error(Code::invalid, "unknown dtype code");
    return static_cast<Element>(code);
}

// An operand is (source, dtype, offset), then the view of a strided one, or None and what describes a
// computed one: (0, encoding) or (1, low rank).
JobOperand make_operand(const py::handle& item) {
    const py::tuple part = py::cast<py::tuple>(item);
    JobOperand operand{part[0].cast<uint32_t>(), element_from(part[1].cast<int>()), part[2].cast<uint64_t>()};
    if (part.size() > 3 && !part[3].is_none()) operand.how = std::shared_ptr<const View>(make_view(part[3]));
    if (part.size() > 4) {
        const py::tuple made = py::cast<py::tuple>(part[4]);
        if (made[0].cast<int>() == 0) operand.how = make_encoding(made[1]);
        if (made[0].cast<int>() == 1) operand.how = make_low_rank(made[1]);
    }
    return operand;
}

std::shared_ptr<const Extents> extents_of(const py::handle& shape) {
    static const auto none = std::make_shared<const Extents>(Extents::of({}));
    const auto sizes = shape.cast<std::vector<uint64_t>>();
    return sizes.empty() ? none : std::make_shared<const Extents>(Extents::of(sizes));
}

// A Job is (kind, index, out dtype, out offset, count, (operand, …), (constant, …), shape, elements that its stages
// read or 0, (mixing, …)); NumbersOfJobs takes the constants.
Job make_job(const py::handle& item) {
    const py::tuple row = py::cast<py::tuple>(item);
    Job job{static_cast<Job::Kind>(row[0].cast<int>()),
            row[1].cast<uint32_t>(),
            dtype_from(row[2].cast<int>()),
            row[3].cast<uint64_t>(),
            row[4].cast<uint64_t>(),
            {}};
    if (job.kind < Job::copy || job.kind > Job::reduce) throw Error(Code::invalid, "unknown kind of job");
    for (const py::handle& operand : py::cast<py::tuple>(row[5])) job.operands.push_back(make_operand(operand));
    if (row.size() > 9) {
        for (const py::handle& mixing : py::cast<py::tuple>(row[9])) job.mixings.push_back(make_mixing(mixing));
    }
    if (row.size() > 8) job.read = row[8].cast<uint64_t>();
    if (row.size() > 7) job.extents = extents_of(row[7]);
    return job;
}

// The constants of jobs. Those of a merge mostly share one tuple: each is converted once, and held so long that no
// other gets its address.
class NumbersOfJobs {
 public:
    explicit NumbersOfJobs(const std::vector<std::shared_ptr<Program>>& programs) : programs_(programs) {}

    std::shared_ptr<const Numbers> of(const Job& job, py::object constants) {
        if (job.index >= programs_.size()) throw Error(Code::invalid, "a job refers to a missing program");
        auto& [held, numbers] = known_[{constants.ptr(), job.index}];
        if (!numbers) {
            numbers = std::make_shared<Numbers>(*programs_[job.index], constants.cast<std::vector<double>>());
            held = std::move(constants);
        }
        return numbers;
    }

 private:
    const std::vector<std::shared_ptr<Program>>& programs_;
    std::map<std::pair<PyObject*, uint32_t>, std::pair<py::object, std::shared_ptr<const Numbers>>> known_;
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
            job.numbers.reserve(1 + versions.size());
            job.numbers.push_back(numbers.of(job, py::cast<py::tuple>(item)[6]));
            for (const py::sequence& output : versions) job.numbers.push_back(numbers.of(job, output[native.size()]));
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

    py::class_<Mapping, std::shared_ptr<Mapping>>(m, "Mapping", py::buffer_protocol())
        .def("__len__", &Mapping::size)
        .def_buffer([](Mapping& self) {
            return py::buffer_info(const_cast<uint8_t*>(self.data()), 1, py::format_descriptor<uint8_t>::format(), 1,
                                   {static_cast<py::ssize_t>(self.size())}, {1}, /*readonly=*/!self.copy_on_write());
        });

    py::class_<Source, std::shared_ptr<Source>>(m, "Source")
        .def(py::init([](const py::bytes& path) { return std::make_shared<Source>(std::string(path)); }),
             py::arg("path"))
        .def_static("memory", &source_of_buffers)
        .def_property_readonly("in_memory", &Source::in_memory)
        .def_property_readonly("path", [](const Source& self) { return as_text(self.path()); })
        .def_property_readonly("size", &Source::size)
        .def_property_readonly("identity",
                               [](const Source& self) {
                                   const os::Stat& id = self.identity();
                                   return std::make_tuple(id.device, id.inode, id.size, id.mtime_ns);
                               })
        .def(
            "read",
            [](const Source& self, uint64_t offset, uint64_t count) {
                if (offset > self.size() || count > self.size() - offset) {
                    throw Error(Code::truncated, self.path() + ": a read past the end of the file");
                }
                py::bytes data = py::reinterpret_steal<py::bytes>(
                    PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(count)));
                if (!data) throw py::error_already_set();
                char* to = PyBytes_AS_STRING(data.ptr());
                py::gil_scoped_release release;
                self.read(to, count, offset);
                return data;
            },
            py::arg("offset"), py::arg("count"))
        .def(
            "read_into",
            [](const Source& self, uint64_t offset, const py::handle& buffer) {
                const Bytes view(buffer, true);
                py::gil_scoped_release release;
                self.read(view.buffer.buf, static_cast<size_t>(view.buffer.len), offset);
            },
            py::arg("offset"), py::arg("buffer"))
        // Bytes of the row-major image of a strided tensor, from its byte `first` on.
        .def(
            "gather_into",
            [](Source& self, uint64_t offset, const py::handle& view, uint64_t first, const py::handle& buffer) {
                const Bytes into(buffer, true);
                const auto shape = make_view(view);
                py::gil_scoped_release release;
                const size_t bytes = static_cast<size_t>(into.buffer.len);
                std::vector<uint8_t> room(bytes + 2 * shape->item());
                std::memcpy(into.buffer.buf, self.gather(*shape, offset, first, bytes, room.data()), bytes);
            },
            py::arg("offset"), py::arg("view"), py::arg("first"), py::arg("buffer"))
        .def("map", &Source::mapping, py::arg("copy_on_write") = false)
        .def("check_unchanged", &Source::check_unchanged)
        .def_property_readonly("touched", &Source::touched)
        .def("settle", &Source::settle)
        .def("close", &Source::close);

    py::class_<Sink, std::shared_ptr<Sink>>(m, "Sink")
        .def(py::init([](const py::bytes& target, uint64_t size) {
                 const std::string path = target;
                 py::gil_scoped_release release;
                 return std::make_shared<Sink>(path, size);
             }),
             py::arg("target"), py::arg("size"))
        .def_property_readonly("size", &Sink::size)
        .def_property_readonly("committed", &Sink::committed)
        .def_property_readonly("leftovers",
                               [](const Sink& self) {
                                   py::list names;
                                   for (const std::string& name : self.leftovers()) names.append(as_text(name));
                                   return names;
                               })
        .def(
            "write",
            [](Sink& self, uint64_t offset, const py::handle& data) {
                const Bytes view(data, false);
                py::gil_scoped_release release;
                self.write(view.buffer.buf, static_cast<size_t>(view.buffer.len), offset);
            },
            py::arg("offset"), py::arg("data"))
        .def(
            "read_into",
            [](const Sink& self, uint64_t offset, const py::handle& buffer) {
                const Bytes view(buffer, true);
                py::gil_scoped_release release;
                self.read(view.buffer.buf, static_cast<size_t>(view.buffer.len), offset);
            },
            py::arg("offset"), py::arg("buffer"))
        .def_property("watermark", &Sink::watermark, &Sink::set_watermark)
        .def("commit", &Sink::commit, py::arg("replace"), py::arg("sync"), py::call_guard<py::gil_scoped_release>())
        .def("abort", &Sink::abort, py::call_guard<py::gil_scoped_release>());

    py::class_<Program, std::shared_ptr<Program>>(m, "Program")
        .def(py::init(&make_program), py::arg("inputs"), py::arg("constants"), py::arg("steps"), py::arg("result"),
             py::arg("wide"), py::arg("stages") = py::tuple(), py::arg("made") = py::tuple(), py::arg("generated") = 0,
             py::arg("functions") = py::tuple())
        .def_property_readonly("fused", [](const Program& self) { return self.fused >= 0; })
        .def_readonly("id", &Program::id)
        .def_readonly("constants", &Program::constants)
        .def_readonly("inputs", &Program::inputs);

    py::class_<LastStage>(m, "LastStage")
        .def_property_readonly("steps", &LastStage::steps)
        .def_property_readonly("result", [](const LastStage& self) { return as_pair(self.left().program->result); })
        .def_property_readonly("constants", [](const LastStage& self) { return self.left().numbers->wide; })
        .def_property_readonly("generated", [](const LastStage& self) { return self.left().generated.size(); })
        .def("generate", &LastStage::generate, py::arg("operand"), py::arg("first"), py::arg("buffer"),
             py::arg("dtype"));

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

    py::class_<Hasher, std::shared_ptr<Hasher>>(m, "Hasher")
        .def(py::init<std::vector<std::shared_ptr<Source>>, std::shared_ptr<Sink>, int64_t, bool, const std::string&>(),
             py::arg("files"), py::arg("sink").none(true) = nullptr, py::arg("body_begin") = -1, py::arg("map") = true,
             py::arg("target") = "")
        .def("start", &Hasher::start, py::call_guard<py::gil_scoped_release>())
        .def("wait", &Hasher::wait, py::arg("seconds"), py::call_guard<py::gil_scoped_release>())
        .def("cancel", &Hasher::cancel, py::call_guard<py::gil_scoped_release>())
        .def("finish", &Hasher::finish, py::call_guard<py::gil_scoped_release>())
        .def_property_readonly("processors", &Hasher::processors)
        .def_property_readonly("files", &Hasher::files)
        .def_property_readonly("body", &Hasher::body);

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
    m.def("cpu_targets", [] {
        std::vector<std::pair<std::string, bool>> rows;
        for (const Target& target : targets()) rows.emplace_back(target.name, target.runs_here());
        return rows;
    });
    m.def(
        "check_target", [](const std::string& name) { return std::string(target_named(name).name); },
        py::arg("name") = "");
    m.def(
        "crc32",
        [](const py::handle& data, uint32_t crc) {
            const Bytes view(data, false);
            py::gil_scoped_release release;
            return crc32(crc, static_cast<const uint8_t*>(view.buffer.buf), static_cast<size_t>(view.buffer.len));
        },
        py::arg("data"), py::arg("crc") = 0);
    m.def("scalar", &scalar, py::arg("name"), py::arg("a"), py::arg("b") = 0.0);
    // The SHA-256 of each buffer; all of them are hashed together, in pieces of `step` bytes (0: in one).
    m.def(
        "sha256",
        [](const std::vector<py::object>& buffers, const std::string& target, size_t step) {
            std::vector<std::unique_ptr<Bytes>> views;
            for (const py::object& buffer : buffers) views.push_back(std::make_unique<Bytes>(buffer, false));
            const HashTarget& chosen = hash_target_named(target);
            std::vector<std::string> digests;
            py::gil_scoped_release release;
            std::vector<Sha256> streams(views.size());
            bool left = true;
            for (size_t at = 0; left; at += step) {
                left = false;
                std::vector<Sha256::Piece> pieces;
                for (size_t i = 0; i < views.size(); ++i) {
                    const size_t size = static_cast<size_t>(views[i]->buffer.len);
                    if (at >= size) continue;
                    const size_t bytes = step ? std::min(step, size - at) : size;
                    pieces.push_back({&streams[i], static_cast<const uint8_t*>(views[i]->buffer.buf) + at, bytes});
                    left |= at + bytes < size;
                }
                Sha256::update(chosen, pieces.data(), pieces.size());
            }
            for (const Sha256& stream : streams) digests.push_back(hex(stream.digest(chosen)));
            return digests;
        },
        py::arg("buffers"), py::arg("target") = "", py::arg("step") = 0);
    m.def("hash_targets", [] {
        std::vector<std::pair<std::string, bool>> rows;
        for (const HashTarget& target : hash_targets()) rows.emplace_back(target.name, target.runs_here());
        return rows;
    });
    m.def("free_bytes", &os::free_bytes, py::arg("folder"));
    m.def("usable_cpus", &os::usable_cpus);
    m.attr("compiler") = SDS_COMPILER;
}
