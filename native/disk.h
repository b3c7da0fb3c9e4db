/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HUTCH_DISK_H
#define HUTCH_DISK_H

#include "report.h"

#include <stdint.h>

/*
 * Mount the ext4 filesystem in the file `image`, with these mount attributes; mapped by
 * `user_namespace` unless it is -1. Its root has `upper` and `work`. The mount is attached
 * nowhere: with the last process that holds it the filesystem and its loop device are gone.
 * Returns a descriptor of it, or -1.
 */
int mount_disk(int image, uint64_t attributes, int user_namespace, struct report *report);

#endif
