/* libnvidia-ml.so.1 of a machine without an NVIDIA GPU; `emulator/nvml.py` compiles it and writes its state.
 *
 * It reads `nvml.state` in its own folder, so no environment variable is needed. The emulator replaces the file by
 * rename, so readers see the old state or the new one, never a part. Layouts and return codes are those of NVIDIA's
 * nvml.h. Where the behaviour of the real library is undocumented, this one takes the worse case: devices are listed
 * when the first reference is taken and not again until the last one is released; a handle is an index into that list
 * and may refer to another GPU after the next start; a GPU that was lost stays lost until then.
 *
 * The energy counter advances between two writes of the state: energy at a time, plus power times the time since then.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stddef.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
  SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
  DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15, RESET_REQUIRED = 16, UNKNOWN = 999
};
enum { SCOPE_GPU = 0, SCOPE_MODULE = 1, SCOPE_MEMORY = 2 };
enum { FIELD_TOTAL_ENERGY = 83, FIELD_POWER_AVERAGE = 185, FIELD_POWER_INSTANT = 186 };
enum { TYPE_UNSIGNED_INT = 1, TYPE_UNSIGNED_LONG_LONG = 3 };
enum { MAX_GPUS = 32, MAGIC = 0x4c4d564e };

#define NS_PER_S 1000000000LL
#define LONGEST_STEP_NS NS_PER_S /* the counters stop soon after the emulator has stopped */

/* The layout of emulator/nvml.py: all numbers have 64 bits, all texts a multiple of 8 bytes. Negative: not supported. */
typedef struct {
  char uuid[96], name[96], bus_id[32];
  int64_t architecture, is_present, code, hangs, generation;
  int64_t energy_at_ns, energy_uj, rate_uw, energy_refresh_ns, has_counter;
  int64_t instant_mw, average_mw, memory_mw, module_mw;
  int64_t has_power_fields, knows_scopes, limit_mw, max_limit_mw, mig;
} gpu_t;
typedef struct {
  int64_t magic, gpus, code, start_ns;
  char driver[80];
  gpu_t gpu[MAX_GPUS];
} state_t;

typedef struct {
  char uuid[96];
  int64_t lost, generation;
  uint64_t shown_mj;
} device_t;

typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } pci_t;
typedef struct {
  unsigned field, scope;
  int64_t timestamp_us, latency_us;
  unsigned type;
  int code;
  union { double d; unsigned u; unsigned long long q; } value;
} field_t;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* not held while a call hangs */
static device_t devices[MAX_GPUS];
static device_t mig_slices[MAX_GPUS * 8]; /* only their addresses are used */
static int listed, references;
static char state_path[PATH_MAX];

__attribute__((constructor)) static void find_state(void) {
  Dl_info info;
  char path[PATH_MAX], *slash;
  if (dladdr((void *)find_state, &info) && realpath(info.dli_fname, path) && (slash = strrchr(path, '/'))) {
    *slash = 0;
    snprintf(state_path, sizeof state_path, "%.*s/nvml.state", (int)(sizeof state_path - 12), path);
  }
}

static int load_state(state_t *state) {
  int file = open(state_path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return DRIVER_NOT_LOADED;
  ssize_t size = read(file, state, sizeof *state);
  close(file);
  const size_t head = offsetof(state_t, gpu);
  if (size < (ssize_t)head || state->magic != MAGIC || state->gpus < 0 || state->gpus > MAX_GPUS) return UNKNOWN;
  if (size < (ssize_t)(head + state->gpus * sizeof(gpu_t))) return UNKNOWN;
  return (int)state->code;
}

static int load_field(device_t *device, field_t *field); /* in nvml_load.c */

static const gpu_t *find(const state_t *state, const char *uuid) {
  for (int i = 0; i < state->gpus; i++)
    if (state->gpu[i].is_present && !strcmp(state->gpu[i].uuid, uuid)) return &state->gpu[i];
  return NULL;
}

/* Copy the current state of a handle's GPU, or return the code that all its calls return. Wait while it hangs. */
static int read_gpu(device_t *device, gpu_t *gpu, int64_t *start_ns) {
  static const struct timespec pause = {0, 50000000};
  state_t state;
  char uuid[sizeof device->uuid];
  for (;;) {
    pthread_mutex_lock(&mutex);
    const int is_slice = device >= mig_slices && device < mig_slices + sizeof mig_slices / sizeof *mig_slices;
    int code = !references ? UNINITIALIZED
               : is_slice  ? NOT_SUPPORTED /* a slice has neither power nor energy */
               : device < devices || device >= devices + listed ? INVALID_ARGUMENT
                                                                : (int)device->lost;
    if (!code) memcpy(uuid, device->uuid, sizeof uuid);
    pthread_mutex_unlock(&mutex);
    if (code || (code = load_state(&state))) return code;
    const gpu_t *present = find(&state, uuid);
    if (present && present->hangs) {
      nanosleep(&pause, NULL);
      continue;
    }
    code = present ? (int)present->code : GPU_IS_LOST;
    if (code == GPU_IS_LOST || code == RESET_REQUIRED) {
      pthread_mutex_lock(&mutex);
      device->lost = code;
      pthread_mutex_unlock(&mutex);
    }
    if (code) return code;
    *gpu = *present;
    if (start_ns) *start_ns = state.start_ns;
    return SUCCESS;
  }
}

#define READ_GPU                                     \
  gpu_t gpu;                                         \
  do {                                               \
    const int code = read_gpu(device, &gpu, NULL);   \
    if (code) return code;                           \
  } while (0)

static int64_t clock_ns(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return t.tv_sec * NS_PER_S + t.tv_nsec;
}

int nvmlInitWithFlags(unsigned flags) {
  (void)flags;
  state_t state;
  const int code = load_state(&state);
  if (code) return code;
  pthread_mutex_lock(&mutex);
  if (!references++) {
    listed = 0;
    for (int i = 0; i < state.gpus; i++) {
      if (!state.gpu[i].is_present) continue;
      device_t *device = &devices[listed++];
      memset(device, 0, sizeof *device);
      memcpy(device->uuid, state.gpu[i].uuid, sizeof device->uuid);
      device->generation = -1;
    }
  }
  pthread_mutex_unlock(&mutex);
  return SUCCESS;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
  pthread_mutex_lock(&mutex);
  const int code = references ? SUCCESS : UNINITIALIZED;
  if (!code) references--;
  pthread_mutex_unlock(&mutex);
  return code;
}

const char *nvmlErrorString(int code) {
  switch (code) {
    case SUCCESS: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case NOT_FOUND: return "Not Found";
    case GPU_IS_LOST: return "GPU is lost";
    default: return "Unknown Error";
  }
}

static int text(char *to, unsigned size, const char *from) {
  if (strlen(from) >= size) return INSUFFICIENT_SIZE;
  strcpy(to, from);
  return SUCCESS;
}

int nvmlSystemGetDriverVersion(char *to, unsigned size) {
  state_t state;
  const int code = references ? load_state(&state) : UNINITIALIZED;
  return code ? code : text(to, size, state.driver);
}
int nvmlSystemGetNVMLVersion(char *to, unsigned size) { return text(to, size, "12.emulated"); }

int nvmlDeviceGetCount_v2(unsigned *count) {
  pthread_mutex_lock(&mutex);
  const int code = references ? SUCCESS : UNINITIALIZED;
  *count = listed;
  pthread_mutex_unlock(&mutex);
  return code;
}

static int handle_of(int index, device_t **device) {
  gpu_t gpu;
  *device = &devices[index];
  return read_gpu(*device, &gpu, NULL);
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, device_t **device) {
  if (!references) return UNINITIALIZED;
  return index < (unsigned)listed ? handle_of((int)index, device) : INVALID_ARGUMENT;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, device_t **device) {
  if (!references) return UNINITIALIZED;
  for (int i = 0; i < listed; i++)
    if (!strcmp(devices[i].uuid, uuid)) return handle_of(i, device);
  return NOT_FOUND;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, device_t **device) {
  state_t state;
  const int code = references ? load_state(&state) : UNINITIALIZED;
  if (code) return code;
  for (int i = 0; i < listed; i++) {
    const gpu_t *gpu = find(&state, devices[i].uuid);
    unsigned requested[4], present[4];
    const char *form = "%x:%x:%x.%x";
    if (gpu && sscanf(bus_id, form, requested, requested + 1, requested + 2, requested + 3) == 4 &&
        sscanf(gpu->bus_id, form, present, present + 1, present + 2, present + 3) == 4 &&
        !memcmp(requested, present, sizeof present))
      return handle_of(i, device);
  }
  return NOT_FOUND;
}

int nvmlDeviceGetIndex(device_t *device, unsigned *index) {
  READ_GPU;
  *index = (unsigned)(device - devices);
  return SUCCESS;
}
int nvmlDeviceGetUUID(device_t *device, char *to, unsigned size) {
  READ_GPU;
  return text(to, size, gpu.uuid);
}
int nvmlDeviceGetName(device_t *device, char *to, unsigned size) {
  READ_GPU;
  return text(to, size, gpu.name);
}
int nvmlDeviceGetArchitecture(device_t *device, unsigned *architecture) {
  READ_GPU;
  *architecture = (unsigned)gpu.architecture;
  return SUCCESS;
}
int nvmlDeviceGetPciInfo_v3(device_t *device, pci_t *pci) {
  READ_GPU;
  memset(pci, 0, sizeof *pci);
  sscanf(gpu.bus_id, "%x:%x:%x", &pci->domain, &pci->bus, &pci->device);
  snprintf(pci->legacy, sizeof pci->legacy, "%04X:%02X:%02X.0", pci->domain & 0xffff, pci->bus & 0xff,
           pci->device & 0xff);
  memcpy(pci->bus_id, gpu.bus_id, sizeof pci->bus_id);
  pci->id = 0x000010de;
  return SUCCESS;
}

int nvmlDeviceGetMigMode(device_t *device, unsigned *current, unsigned *pending) {
  READ_GPU;
  if (gpu.mig < 0) return NOT_SUPPORTED;
  *current = *pending = (unsigned)gpu.mig;
  return SUCCESS;
}
int nvmlDeviceGetMaxMigDeviceCount(device_t *device, unsigned *count) {
  READ_GPU;
  *count = gpu.mig > 0 ? 7 : 0;
  return SUCCESS;
}
static int power(unsigned *to, int64_t milliwatts) {
  if (milliwatts < 0) return NOT_SUPPORTED;
  *to = (unsigned)milliwatts;
  return SUCCESS;
}
int nvmlDeviceGetPowerUsage(device_t *device, unsigned *milliwatts) {
  READ_GPU;
  return power(milliwatts, gpu.average_mw >= 0 ? gpu.average_mw : gpu.instant_mw);
}
int nvmlDeviceGetEnforcedPowerLimit(device_t *device, unsigned *milliwatts) {
  READ_GPU;
  return power(milliwatts, gpu.limit_mw);
}
int nvmlDeviceGetPowerManagementLimit(device_t *device, unsigned *milliwatts) {
  READ_GPU;
  return power(milliwatts, gpu.limit_mw);
}
int nvmlDeviceGetPowerManagementLimitConstraints(device_t *device, unsigned *least, unsigned *most) {
  READ_GPU;
  const int code = power(most, gpu.max_limit_mw);
  *least = *most / 4;
  return code;
}

static int energy(device_t *device, const gpu_t *gpu, int64_t start_ns, unsigned long long *millijoules) {
  if (!gpu->has_counter) return NOT_SUPPORTED;
  double uj = (double)gpu->energy_uj;
  if (start_ns >= 0) {
    int64_t at_ns = clock_ns(CLOCK_MONOTONIC) - start_ns;
    if (gpu->energy_refresh_ns > 0) at_ns -= at_ns % gpu->energy_refresh_ns;
    int64_t since_ns = at_ns - gpu->energy_at_ns;
    if (since_ns > LONGEST_STEP_NS) since_ns = LONGEST_STEP_NS;
    if (since_ns > 0) uj += (double)gpu->rate_uw * (double)since_ns / NS_PER_S;
  }
  uint64_t mj = (uint64_t)(uj / 1000.0);
  /* The counter must not decrease if the power has fallen since then. */
  pthread_mutex_lock(&mutex);
  if (device->generation == gpu->generation && mj < device->shown_mj) mj = device->shown_mj;
  device->generation = gpu->generation;
  device->shown_mj = mj;
  pthread_mutex_unlock(&mutex);
  *millijoules = mj;
  return SUCCESS;
}

int nvmlDeviceGetTotalEnergyConsumption(device_t *device, unsigned long long *millijoules) {
  gpu_t gpu;
  int64_t start_ns;
  const int code = read_gpu(device, &gpu, &start_ns);
  return code ? code : energy(device, &gpu, start_ns, millijoules);
}

int nvmlDeviceGetFieldValues(device_t *device, int count, field_t *fields) {
  gpu_t gpu;
  int64_t start_ns;
  const int code = read_gpu(device, &gpu, &start_ns);
  if (code) return code;
  for (field_t *f = fields; f < fields + count; f++) {
    f->timestamp_us = clock_ns(CLOCK_REALTIME) / 1000;
    f->latency_us = 0;
    f->type = TYPE_UNSIGNED_INT;
    f->value.q = 0;
    f->code = NOT_SUPPORTED;
    const unsigned scope = gpu.knows_scopes ? f->scope : SCOPE_GPU;
    if (f->field == FIELD_TOTAL_ENERGY) {
      f->type = TYPE_UNSIGNED_LONG_LONG;
      f->code = energy(device, &gpu, start_ns, &f->value.q);
    } else if (gpu.has_power_fields && (f->field == FIELD_POWER_AVERAGE || f->field == FIELD_POWER_INSTANT)) {
      const int is_instant = f->field == FIELD_POWER_INSTANT;
      if (scope == SCOPE_GPU)
        f->code = power(&f->value.u, is_instant ? gpu.instant_mw : gpu.average_mw);
      else if (scope == SCOPE_MODULE)
        f->code = power(&f->value.u, gpu.module_mw);
      else if (scope == SCOPE_MEMORY && !is_instant)
        f->code = power(&f->value.u, gpu.memory_mw);
      else if (scope > SCOPE_MEMORY)
        f->code = INVALID_ARGUMENT;
    } else if (f->field != FIELD_POWER_AVERAGE && f->field != FIELD_POWER_INSTANT) {
      f->code = load_field(device, f);
    }
  }
  return SUCCESS;
}
