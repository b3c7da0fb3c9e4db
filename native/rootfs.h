/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HUTCH_ROOTFS_H
#define HUTCH_ROOTFS_H

#include "sandbox.h"

/* Make the sandbox's root filesystem out of its mounts, and make it this process's only one. */
int assemble_root(struct sandbox *sandbox, struct report *report);

#endif
