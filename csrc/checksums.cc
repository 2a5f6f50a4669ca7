#include "checksums.h"

namespace sds {

Checksums::Checksums(std::vector<Job>& jobs, std::vector<Check> checks,
                     const std::vector<std::pair<uint64_t, uint64_t>>& sums)
    : checks_(std::move(checks)) {
    size_t job = 0;
    for (size_t i = 0; i < sums.size(); ++i) {
        const auto [offset, bytes] = sums[i];
        written_.emplace_back(offset, offset + bytes);
        while (job < jobs.size() && jobs[job].out_offset < offset) ++job;
        for (; job < jobs.size() && jobs[job].out_offset < offset + bytes; ++job) {
            if (jobs[job].out_end() > offset + bytes) throw Error(Code::invalid, "a job leaves its summed range");
            jobs[job].sum = static_cast<int32_t>(i);
        }
    }
    for (size_t i = 0; i < checks_.size(); ++i) {
        const Check& check = checks_[i];
        read_.emplace_back(check.offset, check.offset + check.bytes);
        uint64_t reached = check.offset;
        for (const auto& [part, k] : check.parts) {
            if (part >= jobs.size() || k >= jobs[part].operands.size()) throw Error(Code::invalid, "no such operand");
            JobOperand& operand = jobs[part].operands[k];
            if (operand.source != check.source || operand.offset != reached || operand.view() || operand.check >= 0)
                throw Error(Code::invalid, "a check's parts do not follow each other");
            operand.check = static_cast<int32_t>(i);
            reached += jobs[part].count * jobs[part].operand_bytes(k);
        }
        if (reached != check.offset + check.bytes) throw Error(Code::invalid, "a check's parts do not fill it");
    }
}

bool Checksums::read(int32_t check, uint32_t crc, uint64_t bytes, uint64_t end) {
    RangeSum& sum = read_[static_cast<size_t>(check)];
    return sum.add(crc, bytes, end) && sum.value() != checks_[static_cast<size_t>(check)].crc;
}

void Checksums::written(int32_t sum, uint32_t crc, uint64_t bytes, uint64_t end) {
    written_[static_cast<size_t>(sum)].add(crc, bytes, end);
}

std::vector<size_t> Checksums::damaged() const {
    std::vector<size_t> found;
    for (size_t i = 0; i < checks_.size(); ++i) {
        if (read_[i].complete() && read_[i].value() != checks_[i].crc) found.push_back(i);
    }
    return found;
}

std::vector<uint32_t> Checksums::sums() const {
    std::vector<uint32_t> values;
    for (const RangeSum& sum : written_) values.push_back(sum.value());
    return values;
}

}  // namespace sds
