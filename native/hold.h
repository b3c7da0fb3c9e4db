/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HUTCH_HOLD_H
#define HUTCH_HOLD_H

/*
 * Make a user and a mount namespace and keep them for ever, so that the engines of one ordinary
 * user share them. One byte is sent on `engine` when the namespaces exist, one is awaited when
 * their ids are mapped, one is sent when they can be joined. Returns only on failure.
 */
int hold_main(int engine);

#endif
