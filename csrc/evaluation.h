// One chunk of one job, whose operands are in memory: what is made of it for every output, in one call, which a fault
// in mapped memory may end (os::guarded).
#pragma once

#include <cstring>
#include <vector>

#include "crc32.h"
#include "jobs.h"

namespace sds {

// What is made of a chunk for one output.
struct Version {
    uint8_t* out;  // none: it is reduced
    const Program* program = nullptr;
    const Numbers* numbers = nullptr;
    Stages* stages = nullptr;  // of a job that has them: without `out` they get the chunk
    Tally tally = {};
};

// A chunk of one job: its operands' bytes are in memory, or mapped. It is a context of os::guarded.
struct Evaluation {
    const Target& target;
    const Job& job;
    std::vector<Version>& versions;
    uint64_t first, count;
    Overflow policy;
    Scratch& scratch;
    Reduction& reduction;
    Operand operands[Program::kMaxInputs] = {};
    uint32_t crcs[Program::kMaxInputs] = {};  // of the operands' bytes, where they are checked
    // Of the operands that are computed: of an encoded one `operands` has the codes at first.
    Decoder* decoders[Program::kMaxInputs] = {};
    Multiplier* multipliers[Program::kMaxInputs] = {};

    static void run(void* context) {
        Evaluation& self = *static_cast<Evaluation*>(context);
        const bool staged = self.versions[0].stages, written = self.versions[0].out;
        for (size_t k = 0; k < self.job.operands.size(); ++k) {
            const float* made = nullptr;
            if (self.decoders[k]) {
                made = self.decoders[k]->decode(self.target, self.operands[k].data, self.first, self.count);
            } else if (self.multipliers[k]) {
                made = self.multipliers[k]->make(self.target, self.first, self.count);
            }
            if (made) self.operands[k] = {reinterpret_cast<const uint8_t*>(made), DType::f32};
        }
        for (size_t k = 0; k < self.job.operands.size() && (written || !staged); ++k) {
            if (self.job.operands[k].check < 0) continue;
            self.crcs[k] = crc32(0, self.operands[k].data, self.count * self.job.operand_bytes(k));
        }
        if (self.job.kind == Job::reduce) {
            self.target.reduce(self.job.operands[0].element, self.operands[0].data, self.job.operands[1].element,
                               self.operands[1].data, self.count, self.reduction);
            return;
        }
        for (Version& version : self.versions) {
            if (self.job.kind == Job::copy) {
                if (version.out != self.operands[0].data) std::memcpy(version.out, self.operands[0].data, self.count);
            } else if (!version.out) {
                version.stages->add(self.operands, self.count, self.scratch);
            } else {
                if (staged) version.stages->add_generated(version.stages->last(), self.first, self.operands);
                self.target.evaluate(*version.program, *version.numbers, self.operands, version.out, self.job.out_dtype,
                                     self.count, self.policy, version.tally, self.scratch);
            }
        }
    }
};

}  // namespace sds
