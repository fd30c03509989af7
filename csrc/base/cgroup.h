// What cgroups leave a process of the machine's cores.
#pragma once

namespace lowbit {

// The least quota, in cores, of the cgroup of this process and those above it, of version 1 or 2; a
// large number where there is none. `root` stands before /proc and /sys: empty but in tests.
double cgroup_cores(const char* root);

}  // namespace lowbit
