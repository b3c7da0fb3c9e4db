/* SPDX-License-Identifier: Apache-2.0 */
/* From a fresh process in fresh namespaces to the init of a sandbox. */
#ifndef HUTCH_SANDBOX_H
#define HUTCH_SANDBOX_H

#include "launch_request.h"

/* A sandbox in the making. */
struct sandbox {
  const struct launch *launch;
  int mounts[LAUNCH_MAX_MOUNTS]; /* detached: the writable directory, the layers, the binds, and
                                    with WIRE_OWN_DEVICES the devices */
  int staging;                   /* a private tmpfs that holds what the root is made of */
  int root;
  int null; /* the sandbox's own /dev/null */
};

/*
 * Take ids and mounts from the launcher, apply every layer of isolation, answer `engine` with
 * WIRE_READY or WIRE_ERROR, and serve as init or end.
 */
_Noreturn void become_sandbox(const struct launch *launch, int engine, int launcher);

#endif
