/* SPDX-License-Identifier: Apache-2.0 */
/* The devices of a sandbox: the few that every program may have. */
#ifndef HUTCH_DEVICES_H
#define HUTCH_DEVICES_H

#include "report.h"

#include <stdint.h>

/*
 * Make a filesystem with nodes of its own, all of it `owner`'s, who is root inside: what is done to
 * a node, such as a lock or a new time, is then seen by one sandbox alone. It is attached nowhere.
 * Returns a descriptor of it, or -1; it takes privilege over the host.
 */
int make_devices(uint32_t owner, struct report *report);

/* Fill the current directory with the host's own nodes, where there is no such privilege. */
int bind_devices(struct report *report);

#endif
