/* The session of a process with the driver, and the handles that it gives out. */
#ifndef WATTLINE_VIRTUAL_SESSION_H
#define WATTLINE_VIRTUAL_SESSION_H

#include "abi.h"
#include "state.h"

/* A call on a GPU that may go on: where its state is, and what the time is. */
typedef struct {
    wv_map *map;
    wv_gpu *gpu;
    int slot;
    int mig; /* index of the MIG instance; -1: the handle is of the GPU itself */
    int64_t now_ns;
    int late; /* what the call returns although it is done */
} wv_call;

int wv_session(int group, wv_map **map);
int wv_begin(nvmlDevice_t device, int group, wv_call *call);
int wv_begin_whole(nvmlDevice_t device, int group, wv_call *call);
nvmlDevice_t wv_handle(wv_map *map, int slot, int mig);
int wv_put_text(const char *text, char *out, unsigned int length);
int wv_lock_code(wv_map *map);

#endif
