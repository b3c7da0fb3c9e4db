/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HUTCH_CONFINE_H
#define HUTCH_CONFINE_H

#include "sandbox.h"

/* Set what no cgroup counts: setrlimit(2). */
int limit_resources(struct sandbox *sandbox, struct report *report);

/* Take from this process and all it will ever start what the kernel would still let them do. */
int confine(struct sandbox *sandbox, struct report *report);

#endif
