/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hutch-init: the native half of a sandbox.
 *   hutch-init launch NAME   start a sandbox as the request on descriptor 3 says (launch.c)
 *   hutch-init hold          keep a user namespace for rootless engines (hold.c)
 */
#define _GNU_SOURCE
#include "hold.h"
#include "launch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

#define ENGINE 3 /* the descriptor both phases are started with */

int main(int argc, char **argv) {
  if (argc == 3 && strcmp(argv[1], "launch") == 0) {
    prctl(PR_SET_NAME, "hutch-init");
    return launch_main(ENGINE, argv[2]);
  }
  if (argc == 2 && strcmp(argv[1], "hold") == 0) {
    prctl(PR_SET_NAME, "hutch-hold");
    return hold_main(ENGINE);
  }
  fprintf(stderr, "hutch-init is a part of hutch, which starts it: hutch run -- COMMAND\n");
  return EXIT_FAILURE;
}
