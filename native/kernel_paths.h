/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a sandbox must not reach of /proc: at least what the OCI's defaults mask and what abuse of
 * container runtimes has taught since. A row per path with its reason; a path that a kernel does
 * not have is passed over. tests/runtime/test_posture.py holds the result to a list.
 */
#ifndef HUTCH_KERNEL_PATHS_H
#define HUTCH_KERNEL_PATHS_H

#include <stdbool.h>
#include <stddef.h>

struct kernel_path {
  const char *name; /* below /proc */
  bool directory;   /* covered by an empty directory; a file by /dev/null */
  const char *reason;
};

static const struct kernel_path masked_paths[] = {
    {"acpi", true, "controls the host's power"},
    {"asound", true, "the host's sound devices"},
    {"bus", true, "the host's devices"},
    {"driver", true, "the host's drivers"},
    {"fs", true, "switches of the host's filesystems"},
    {"irq", true, "where the host's interrupts go"},
    {"pressure", true, "how busy the host is, and memory for each trigger"},
    {"scsi", true, "controls the host's disks"},
    {"buddyinfo", false, "the layout of physical memory"},
    {"cmdline", false, "how the host was booted, secrets included"},
    {"config.gz", false, "what the kernel can be attacked by"},
    {"interrupts", false, "a clock for key strokes and cryptography on the host"},
    {"kallsyms", false, "addresses in the kernel"},
    {"kcore", false, "the host's memory"},
    {"key-users", false, "the host's users and their keys"},
    {"keys", false, "keys of the host"},
    {"kmsg", false, "the kernel's log"},
    {"kpagecgroup", false, "the host's pages"},
    {"kpagecount", false, "the host's pages"},
    {"kpageflags", false, "the host's pages"},
    {"latency_stats", false, "what other processes wait for"},
    {"pagetypeinfo", false, "the layout of physical memory"},
    {"sched_debug", false, "every process of the host"},
    {"schedstat", false, "a clock for what the host runs"},
    {"slabinfo", false, "the kernel's allocations"},
    {"softirqs", false, "a clock for what the host does"},
    {"sysrq-trigger", false, "crashes the host"},
    {"timer_list", false, "every process of the host, addresses in the kernel"},
    {"timer_stats", false, "every process of the host"},
    {"vmallocinfo", false, "addresses in the kernel"},
    {"zoneinfo", false, "the layout of physical memory"},
    {NULL, false, NULL},
};

#endif
