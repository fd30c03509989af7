// A container sees its own cgroup as the root of the tree, a service is somewhere inside it and
// bound by every cgroup above it: so the quotas from /proc/self/cgroup's path up to the root count,
// and a path that is not there (the mount shows another part of the tree) counts nothing.
#include "csrc/base/cgroup.h"

#include <cstdio>
#include <cstring>

namespace lowbit {
namespace {

constexpr double kNone = 1e9;
constexpr int kPath = 1024;

// The numbers a file begins with: how many of at most two.
int read_numbers(const char* path, double (&out)[2]) {
  FILE* f = std::fopen(path, "r");
  if (f == nullptr) return 0;
  const int found = std::fscanf(f, "%lf %lf", &out[0], &out[1]);
  std::fclose(f);
  return found < 0 ? 0 : found;
}

// Of one cgroup: version 2 has "quota period" or "max period" in one file, version 1 two files, and
// -1 for no quota.
double quota_of(const char* folder) {
  char path[2 * kPath];
  double quota[2], period[2];
  std::snprintf(path, sizeof path, "%s/cpu.max", folder);
  if (read_numbers(path, quota) == 2) return quota[1] > 0 ? quota[0] / quota[1] : kNone;
  std::snprintf(path, sizeof path, "%s/cpu.cfs_quota_us", folder);
  if (read_numbers(path, quota) < 1 || quota[0] <= 0) return kNone;
  std::snprintf(path, sizeof path, "%s/cpu.cfs_period_us", folder);
  return read_numbers(path, period) >= 1 && period[0] > 0 ? quota[0] / period[0] : kNone;
}

// Is `name` one of the words between commas?
bool lists(const char* words, const char* name) {
  const size_t size = std::strlen(name);
  for (const char* at = words; at != nullptr; at = std::strchr(at, ',')) {
    if (*at == ',') ++at;
    if (std::strncmp(at, name, size) == 0 && (at[size] == 0 || at[size] == ',')) return true;
  }
  return false;
}

// The path of this process among the cgroups of a controller (version 1), or of all (version 2:
// ""). Empty where there is none.
void own_path(const char* root, const char* controller, char (&out)[kPath]) {
  out[0] = 0;
  char line[kPath];
  std::snprintf(line, sizeof line, "%s/proc/self/cgroup", root);
  FILE* f = std::fopen(line, "r");
  if (f == nullptr) return;
  while (std::fgets(line, sizeof line, f) != nullptr) {
    line[std::strcspn(line, "\n")] = 0;
    char* controllers = std::strchr(line, ':');
    char* path = controllers == nullptr ? nullptr : std::strchr(controllers + 1, ':');
    if (path == nullptr) continue;
    *path++ = 0;
    ++controllers;
    const bool mine = *controller == 0 ? *controllers == 0 : lists(controllers, controller);
    if (mine) std::snprintf(out, sizeof out, "%s", path);
  }
  std::fclose(f);
}

double least_quota(const char* root, const char* mount, const char* controller) {
  char path[kPath], folder[2 * kPath - 32];
  own_path(root, controller, path);
  double least = kNone;
  for (;;) {
    std::snprintf(folder, sizeof folder, "%s/sys/fs/cgroup%s%s", root, mount, path);
    const double quota = quota_of(folder);
    if (quota < least) least = quota;
    char* end = std::strrchr(path, '/');
    if (end == nullptr) return least;
    *end = 0;
  }
}

}  // namespace

double cgroup_cores(const char* root) {
  const double found[] = {least_quota(root, "", ""), least_quota(root, "/cpu", "cpu"),
                          least_quota(root, "/cpu,cpuacct", "cpu")};
  double least = kNone;
  for (const double quota : found) least = quota < least ? quota : least;
  return least;
}

}  // namespace lowbit
