/* State of a virtual GPU node: one file, mapped by every process that uses it.
 *
 * Each GPU's state is an append-only ring of entries. An entry is written whole and then published
 * by one atomic store of its sequence number, so a process that is killed in the middle of a change
 * has either made it or not. A robust mutex keeps writers apart; readers take no lock. The rings
 * are the log as well: an observer that reads them misses no change between two of its samples.
 *
 * All numbers are little-endian; WV_MAGIC and WV_VERSION guard the layout. Times are CLOCK_MONOTONIC.
 */
#ifndef WATTLINE_VIRTUAL_STATE_H
#define WATTLINE_VIRTUAL_STATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#define WV_MAGIC 0x3130555047564c57ull /* "WLVGPU01" */
#define WV_VERSION 1u
#define WV_GPUS 32
#define WV_RING 1024
#define WV_KEPT 960 /* entries that may be read: a distance to the writer while they are copied */
#define WV_CLIENTS 128
#define WV_PROCESSES 16
#define WV_MIGS 8
#define WV_HIDDEN_FIELDS 8
#define WV_NODE WV_GPUS /* faults and counters of calls that concern no single GPU */

#define WV_API __attribute__((visibility("default")))

/* Groups of calls that share faults and counters. The order is part of the layout. */
enum wv_group {
    WV_ALL,
    WV_SESSION,
    WV_ENUMERATION,
    WV_IDENTITY,
    WV_LIMIT_READ,
    WV_LIMIT_WRITE,
    WV_POWER,
    WV_ENERGY,
    WV_FIELDS,
    WV_CLOCK_READ,
    WV_CLOCK_WRITE,
    WV_REASONS,
    WV_PERSISTENCE,
    WV_PROCESS_LIST,
    WV_MIG,
    WV_TELEMETRY,
    WV_EVENTS,
    WV_GROUPS
};

/* Who or what made an entry. */
enum wv_cause {
    WV_CREATED = 1,
    WV_NVML = 2,    /* a process, by a call of NVML */
    WV_CONTROL = 3, /* the control, by hand */
    WV_RIVAL = 4,   /* the stand-in for another writer */
    WV_RELOAD = 5,  /* the driver was loaded anew */
    WV_UNLOAD = 6,  /* without persistence mode, the last client went away */
    WV_OUT_OF_BAND = 7
};

/* A GPU from `t_ns` on, until the next entry. 0 in a clock, a ceiling or a floor: there is none. */
typedef struct {
    uint64_t seq;
    int64_t t_ns;
    uint32_t cause;
    uint32_t pid;
    uint32_t before_mw; /* enforced by the entry before */
    uint32_t enforced_mw;
    uint32_t requested_mw;
    uint32_t load_mw; /* what the work would draw at full clocks without a limit */
    uint32_t clock_min_mhz;
    uint32_t clock_max_mhz;
    uint32_t ceiling_mw;
    uint32_t floor_mw;
    uint32_t persistence;
    uint32_t mig;
    double chip_mw;   /* the limit that the chip has come to obey at t_ns */
    double energy_mj; /* since the driver was loaded, until t_ns */
    double capped_ns; /* time held back by the limit, until t_ns */
} wv_entry;

typedef struct {
    char uuid[96];
    char name[96];
    char serial[32];
    char bus_id[32];
    uint32_t pci_bus;
    uint32_t pci_device_id;
    uint32_t minor;
    uint32_t architecture;
    uint32_t min_mw;
    uint32_t max_mw;
    uint32_t default_mw;
    uint32_t idle_mw;
    uint32_t min_mhz;
    uint32_t max_mhz;
    uint32_t memory_mhz;
    uint32_t persistence;
    uint64_t memory_bytes;
    int64_t settle_ns; /* how long after a change of the register the chip obeys it */
} wv_spec;

typedef struct {
    uint32_t pid;
    uint32_t graphics;
    uint32_t gpu_instance;
    uint32_t compute_instance;
    uint64_t memory_bytes;
} wv_process;

typedef struct {
    char uuid[96];
    uint32_t gpu_instance;
    uint32_t compute_instance;
    uint64_t memory_bytes;
} wv_mig;

typedef struct {
    _Atomic int32_t remaining; /* calls that still meet it; -1: until it is cleared */
    _Atomic int32_t code; /* NVML's return code; 0: only slow; negative: fail with it once done */
    _Atomic uint32_t delay_us;
} wv_fault;

typedef struct {
    uint32_t limit_mw;
    int32_t remaining; /* writes still to come; -1: until it is cleared */
    int64_t period_ns;
    _Atomic int64_t next_ns; /* 0: no rival */
} wv_rival;

typedef struct {
    wv_spec spec;
    _Atomic uint32_t present;
    _Atomic uint32_t lost; /* the Xid that it was lost with */
    _Atomic uint32_t xid_count;
    _Atomic uint32_t hidden_fields[WV_HIDDEN_FIELDS];
    wv_rival rival;
    uint32_t process_count;
    wv_process processes[WV_PROCESSES];
    uint32_t mig_count;
    wv_mig migs[WV_MIGS];
    _Atomic uint64_t newest; /* sequence number of the entry in force; 0: none yet */
    wv_entry ring[WV_RING];
} wv_gpu;

typedef struct {
    uint64_t start_ticks;
    uint32_t pid;
    uint32_t used;
} wv_client;

typedef struct {
    uint64_t magic;
    uint32_t version;
    uint32_t size;
    char driver_version[80];
    char nvml_version[80];
    pthread_mutex_t lock;
    _Atomic uint32_t enumeration;    /* handles of an older one are stale */
    _Atomic uint32_t driver_load;    /* sessions of an older one are dead */
    _Atomic int32_t dead_session;    /* what calls in a dead session return */
    _Atomic int64_t driver_absent_until_ns;
    uint32_t count;
    uint32_t order[WV_GPUS]; /* slot of each index */
    wv_client clients[WV_CLIENTS];
    wv_fault faults[WV_GPUS + 1][WV_GROUPS];
    _Atomic uint64_t calls[WV_GPUS + 1][WV_GROUPS];
    wv_gpu gpus[WV_GPUS];
} wv_map;

typedef struct {
    wv_map *map;
    uint64_t device;
    uint64_t inode;
} wv_context;

/* A GPU at one moment. */
typedef struct {
    wv_entry entry;
    double draw_mw;    /* without the limiter's deviations, as energy counts it */
    double instant_mw; /* one sample, deviations and all */
    double average_mw; /* of the last second */
    double energy_mj;
    double capped_ns;
    double chip_mw;
    uint32_t clock_mhz;
    uint32_t capped; /* the limit holds it back now */
} wv_view;

int64_t wv_now(void);
int wv_open_context(wv_context *context, const char *path);
void wv_close_context(wv_context *context);
int wv_lock(wv_map *map);
int wv_lock_within(wv_map *map, int64_t wait_ns);
void wv_unlock(wv_map *map);
wv_entry wv_newest(wv_gpu *gpu);
wv_entry wv_advance(wv_gpu *gpu, const wv_entry *from, int64_t now_ns);
void wv_publish(wv_gpu *gpu, wv_entry *entry, uint32_t cause, uint32_t pid);
void wv_set_requested(const wv_spec *spec, wv_entry *entry, uint32_t requested_mw);
void wv_reset_gpu(wv_gpu *gpu, int64_t now_ns, uint32_t cause);
void wv_look(wv_gpu *gpu, int64_t now_ns, wv_view *view);
void wv_rival_due(wv_map *map, wv_gpu *gpu, int64_t now_ns);
void wv_sweep_clients(wv_map *map, int64_t now_ns);
int wv_client_enter(wv_map *map);
void wv_client_leave(wv_map *map);
int wv_take_fault(wv_map *map, int slot, int group);

#endif
