#include "jobs.h"

#include <algorithm>

namespace sds {

namespace {

struct Refusal {
    size_t job;
    [[noreturn]] void operator()(const char* why) const { throw Error(Code::invalid, why, static_cast<int64_t>(job)); }
};

void check_operand(const Job& job, size_t k, const std::vector<std::shared_ptr<Source>>& sources, Refusal refuse) {
    const JobOperand& operand = job.operands[k];
    if (operand.source >= sources.size()) refuse("a job refers to a missing source");
    const Source& source = *sources[operand.source];
    if (job.kind == Job::evaluate && static_cast<int>(operand.element) >= kDTypes)
        refuse("a formula reads floats only");
    const uint64_t elements = std::max(job.count, job.elements());
    uint64_t bytes = elements * job.operand_bytes(k);
    if (operand.is_made()) {
        if (job.kind == Job::copy || operand.view() || operand.check >= 0 || operand.element != Element::f32)
            refuse("what is computed is an operand of formulas only");
        try {
            operand.encoding() ? operand.encoding()->check(sources) : operand.low_rank()->check(sources);
        } catch (const Error& error) {
            refuse(error.what());
        }
        if (elements > (operand.encoding() ? operand.encoding()->elements() : operand.low_rank()->elements()))
            refuse("a job reads past the end of a tensor");
        bytes = operand.encoding() ? operand.encoding()->stored_bytes() : 0;
    } else if (operand.view()) {
        if (job.kind != Job::copy && operand.view()->item() != job.operand_bytes(k)) refuse("wrong element size");
        if (bytes > operand.view()->elements() * operand.view()->item()) refuse("a job reads past the end of a tensor");
        bytes = operand.view()->reach();
    }
    if (operand.offset > source.size() || bytes > source.size() - operand.offset)
        refuse("a job reads past the end of a source");
    if (source.in_memory()) source.memory(operand.offset, bytes);
}

}  // namespace

std::vector<Job> admitted(std::vector<Job> jobs, const std::vector<std::shared_ptr<Source>>& sources,
                          const std::vector<std::shared_ptr<Program>>& programs, const std::vector<Fill>& fills,
                          const std::vector<Output>& outputs) {
    uint64_t reached = 0;
    for (size_t i = 0; i < jobs.size(); ++i) {
        const Job& job = jobs[i];
        const Refusal refuse{i};
        if (job.kind == Job::reduce && (!outputs.empty() || job.operands.size() != 2))
            refuse("a reduction has two operands and no output");
        if (job.count > (UINT64_MAX >> 4) || job.elements() > (UINT64_MAX >> 4) || job.out_offset > (UINT64_MAX >> 1))
            refuse("a job is too large");
        if (job.out_offset < reached) refuse("jobs are not in the order of their output");
        reached = job.out_end();
        for (const Output& output : outputs) {
            if (output.shift < 0
                    ? job.out_offset < static_cast<uint64_t>(-output.shift)
                    : reached > output.sink->size() - std::min<uint64_t>(output.shift, output.sink->size()))
                refuse("a job writes outside the output");
            if (output.shift < 0 && reached - static_cast<uint64_t>(-output.shift) > output.sink->size())
                refuse("a job writes past the end of the output");
        }
        if (job.kind == Job::copy && job.operands.size() != 1) refuse("a copy has one operand");
        if (job.kind == Job::evaluate) {
            if (job.index >= programs.size()) refuse("a job refers to a missing program");
            if (job.operands.size() != static_cast<size_t>(programs[job.index]->inputs)) refuse("wrong operand count");
            if (!job.numbers || job.numbers->size() != std::max<size_t>(1, outputs.size()))
                refuse("a job has constants for the wrong number of outputs");
            for (const auto& numbers : *job.numbers) {
                if (!numbers || numbers->wide.size() != static_cast<size_t>(programs[job.index]->constants))
                    refuse("a job has the wrong number of constants for its program");
            }
            if (programs[job.index]->in_stages() && (!job.staged || job.staged->extents.count != job.elements()))
                refuse("a job of several stages needs the tensor's shape");
        }
        for (size_t k = 0; job.staged && k < job.staged->mixings.size(); ++k) {
            try {
                job.staged->mixings[k]->check(sources);
            } catch (const Error& error) {
                refuse(error.what());
            }
        }
        if (job.kind == Job::fill && job.index >= fills.size()) refuse("a job refers to a missing fill rule");
        if (job.kind != Job::copy && job.kind != Job::reduce && job.out_offset % job.element_bytes() != 0)
            refuse("an output tensor is misaligned");
        for (size_t k = 0; k < job.operands.size(); ++k) check_operand(job, k, sources, refuse);
    }
    return jobs;
}

}  // namespace sds
