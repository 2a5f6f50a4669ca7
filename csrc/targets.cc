#include "targets.h"

#include <algorithm>

#include "cpu.h"
#include "error.h"

namespace sds {

// Constants of their files, so they are there before anything runs.
namespace scalar {
extern const Target target;
}
namespace avx2 {
extern const Target target;
}
namespace avx512 {
extern const Target target;
}
namespace neon {
extern const Target target;
}

const std::vector<Target>& targets() {
    static const std::vector<Target> all = {
#ifdef SDS_X86
        avx512::target,
        avx2::target,
#endif
#ifdef SDS_ARM
        neon::target,
#endif
        scalar::target,
    };
    return all;
}

namespace {

const Target& fastest() {
    const std::vector<Target>& all = targets();
    return *std::find_if(all.begin(), all.end(), [](const Target& target) { return target.runs_here(); });
}

}  // namespace

const Target& target_named(const std::string& name) {
    static const Target& chosen = fastest();  // asking the processor takes microseconds in a virtual machine
    if (name.empty()) return chosen;
    std::string known;
    for (const Target& target : targets()) {
        if (name == target.name) {
            if (!target.runs_here()) throw Error(Code::invalid, "this machine cannot run the CPU target " + name);
            return target;
        }
        known += std::string(known.empty() ? "" : ", ") + target.name;
    }
    throw Error(Code::invalid, "unknown CPU target '" + name + "' (this build has " + known + ")");
}

}  // namespace sds
