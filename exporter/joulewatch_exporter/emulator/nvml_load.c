/* The second part of libnvidia-ml.so.1, compiled together with nvml.c: what runs on a GPU, and under which conditions.
 *
 * It reads `nvml.load` in the folder of the library; `emulator/nvml_load.py` writes it. Where the behaviour of the real
 * library is undocumented, the assumption is:
 * - nvmlDeviceGetProcessUtilization returns one sample per process that was active after lastSeenTimeStamp: the mean over
 *   all samples of the driver since then, idle ones included, with the time of the last sample in which it was active;
 * - a driver that is older than a function has no such symbol, so the function ends with the code that nvidia-ml-py
 *   uses for a missing symbol.
 */
enum { FUNCTION_NOT_FOUND = 13 };
enum {
  MAX_PROCESSES = 16, MAX_SAMPLES = 64, MAX_SLICES = 8, COUNTERS = 15, POLICIES = 12, LOAD_MAGIC = 0x444f4c4e,
  ACCOUNTED = 4000
};
enum { COMPUTE = 1, GRAPHICS = 2, MPS = 4 };
/* Bits of `unsupported`, in the order of emulator/nvml_load.py. */
enum {
  PROCESSES = 1, PROCESS_UTILISATION = 2, VIOLATIONS = 4, VIOLATION_FIELDS = 8, EVENT_REASONS = 16, CLOCKS = 32,
  TEMPERATURE = 64, COMPUTE_MODE = 128, PCIE = 256, DEFAULT_LIMIT = 512
};

typedef struct {
  int64_t pid, kinds, slice, memory, has_context, start_us, time_ms, sample_count, sum_util;
  int64_t sm[MAX_SAMPLES]; /* percent, oldest first */
} process_t;
typedef struct {
  char uuid[96];
  int64_t unsupported, accounting, at_ns;
  int64_t newest_us, period_us, samples, has_garbage;
  int64_t counter_ns[COUNTERS], counter_ppm[COUNTERS]; /* by nvmlPerfPolicyType_t, then fields 269 to 271 */
  int64_t event_reasons, sm_mhz, memory_mhz, max_sm_mhz, max_memory_mhz;
  int64_t celsius, slowdown_celsius, ecc_uncorrected, smoothing, floor_watts, profiles, default_limit_mw;
  int64_t compute_mode, pcie_generation, max_pcie_generation, pcie_width, max_pcie_width;
  int64_t slices, slice_sm[MAX_SLICES];
  int64_t processes;
  process_t process[MAX_PROCESSES];
} load_t;
typedef struct { int64_t magic, gpus; } load_head_t;

typedef struct { unsigned pid; unsigned long long memory; unsigned gpu_instance, compute_instance; } process_info_t;
typedef struct { unsigned pid; unsigned long long time_us; unsigned sm, memory, encoder, decoder; } utilisation_t;
typedef struct {
  unsigned gpu, memory;
  unsigned long long max_memory, time_ms, start_us;
  unsigned is_running, reserved[5];
} accounting_t;
typedef struct {
  unsigned pid, is_running, gpu, memory;
  unsigned long long max_memory;
  unsigned samples;
  unsigned long long sum_gpu, sum_memory, time_ms, start_us;
} accounting_v2_t;
typedef struct {
  unsigned sm, copy, decoder, encoder, jpeg, ofa, gpu_slices, compute_slices;
  unsigned long long memory_mb;
} attributes_t;
typedef struct { unsigned version, sensor; int celsius; } temperature_t;

/* Read the load of a GPU, or return the code that all its calls return; `slice` is -1 for the whole GPU. */
static int read_load(device_t *device, load_t *load, int *slice) {
  gpu_t gpu;
  *slice = -1;
  if (device >= mig_slices && device < mig_slices + MAX_GPUS * MAX_SLICES) {
    const int number = (int)(device - mig_slices);
    device = &devices[number / MAX_SLICES];
    *slice = number % MAX_SLICES;
  }
  const int code = read_gpu(device, &gpu, NULL);
  if (code) return code;
  char path[PATH_MAX + 8];
  snprintf(path, sizeof path, "%s", state_path);
  strcpy(strrchr(path, '.'), ".load");
  const int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return NOT_SUPPORTED;
  load_head_t head;
  int result = read(file, &head, sizeof head) == sizeof head && head.magic == LOAD_MAGIC ? NOT_FOUND : UNKNOWN;
  for (int i = 0; result == NOT_FOUND && i < head.gpus; i++) {
    const off_t at = sizeof head + i * (off_t)sizeof *load;
    if (pread(file, load, sizeof *load, at) != sizeof *load)
      result = UNKNOWN;
    else if (!strcmp(load->uuid, gpu.uuid))
      result = SUCCESS;
  }
  close(file);
  return result;
}

#define READ_LOAD                                         \
  load_t load;                                            \
  int slice;                                              \
  do {                                                    \
    const int code = read_load(device, &load, &slice);    \
    if (code) return code;                                \
  } while (0)
#define SINCE(version) \
  if (driver_major() < (version)) return FUNCTION_NOT_FOUND
#define NEEDS(bit) \
  if (load.unsupported & (bit)) return NOT_SUPPORTED
#define OF_WHOLE_GPU \
  if (slice >= 0) return NOT_SUPPORTED

static int driver_major(void) {
  state_t state;
  return load_state(&state) ? 0 : atoi(state.driver);
}

static int number(unsigned *to, int64_t value) {
  if (value < 0) return NOT_SUPPORTED;
  *to = (unsigned)value;
  return SUCCESS;
}

/* -- processes ------------------------------------------------------------------------------------------------- */

static int list_processes(device_t *device, int kind, unsigned *count, process_info_t *list) {
  READ_LOAD;
  NEEDS(PROCESSES);
  unsigned found = 0;
  for (int i = 0; i < load.processes; i++) {
    const process_t *process = &load.process[i];
    if (!process->has_context || !(process->kinds & kind) || (slice >= 0 && process->slice != slice)) continue;
    if (list && found < *count) {
      const unsigned instance = process->slice < 0 ? ~0u : (unsigned)process->slice;
      list[found] = (process_info_t){(unsigned)process->pid, (unsigned long long)process->memory, instance, instance};
    }
    found++;
  }
  const int fits = found == 0 || (list && found <= *count);
  *count = found;
  return fits ? SUCCESS : INSUFFICIENT_SIZE;
}
int nvmlDeviceGetComputeRunningProcesses_v2(device_t *device, unsigned *count, process_info_t *list) {
  return list_processes(device, COMPUTE, count, list);
}
int nvmlDeviceGetGraphicsRunningProcesses_v2(device_t *device, unsigned *count, process_info_t *list) {
  return list_processes(device, GRAPHICS, count, list);
}
int nvmlDeviceGetMPSComputeRunningProcesses_v2(device_t *device, unsigned *count, process_info_t *list) {
  return list_processes(device, MPS, count, list);
}
int nvmlDeviceGetComputeRunningProcesses_v3(device_t *device, unsigned *count, process_info_t *list) {
  SINCE(510);
  return list_processes(device, COMPUTE, count, list);
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(device_t *device, unsigned *count, process_info_t *list) {
  SINCE(510);
  return list_processes(device, GRAPHICS, count, list);
}
int nvmlDeviceGetMPSComputeRunningProcesses_v3(device_t *device, unsigned *count, process_info_t *list) {
  SINCE(510);
  return list_processes(device, MPS, count, list);
}

static int is_sliced(device_t *device) {
  gpu_t gpu;
  return !read_gpu(device, &gpu, NULL) && gpu.mig > 0;
}

int nvmlDeviceGetProcessUtilization(device_t *device, utilisation_t *list, unsigned *count, unsigned long long seen_us) {
  READ_LOAD;
  NEEDS(PROCESS_UTILISATION);
  OF_WHOLE_GPU;
  if (is_sliced(device)) return NOT_SUPPORTED;
  utilisation_t samples[MAX_PROCESSES + 3];
  unsigned found = 0;
  for (int i = 0; i < load.processes; i++) {
    const process_t *process = &load.process[i];
    int64_t sum = 0, last_us = 0;
    int samples_since = 0;
    for (int k = 0; k < load.samples; k++) {
      const int64_t at_us = load.newest_us - (load.samples - 1 - k) * load.period_us;
      if (at_us <= (int64_t)seen_us) continue;
      samples_since++;
      sum += process->sm[k];
      if (process->sm[k]) last_us = at_us;
    }
    if (!last_us) continue;
    const unsigned mean = (unsigned)((sum + samples_since / 2) / samples_since);
    samples[found++] = (utilisation_t){(unsigned)process->pid, (unsigned long long)last_us, mean, 0, 0, 0};
  }
  if (found && load.has_garbage) { /* as seen with real drivers: stale entries, unset ones, absurd values */
    samples[found] = samples[0];
    samples[found++].time_us = seen_us ? seen_us : 1;
    samples[found++] = (utilisation_t){0, 0, 0, 0, 0, 0};
    samples[found++] = (utilisation_t){4194303, (unsigned long long)load.newest_us, 4294967295u, 0, 0, 0};
  }
  if (!found) return NOT_FOUND;
  const int fits = list && found <= *count;
  if (fits) memcpy(list, samples, found * sizeof *list);
  *count = found;
  return fits ? SUCCESS : INSUFFICIENT_SIZE;
}

int nvmlDeviceGetUtilizationRates(device_t *device, unsigned rates[2]) {
  READ_LOAD;
  OF_WHOLE_GPU;
  if (is_sliced(device)) return NOT_SUPPORTED;
  int64_t sum = 0;
  for (int i = 0; i < load.processes; i++)
    if (load.samples) sum += load.process[i].sm[load.samples - 1];
  rates[0] = sum > 100 ? 100 : (unsigned)sum;
  rates[1] = 0;
  return SUCCESS;
}

/* -- accounting --------------------------------------------------------------------------------------------------- */

int nvmlDeviceGetAccountingMode(device_t *device, unsigned *mode) {
  READ_LOAD;
  OF_WHOLE_GPU;
  return number(mode, load.accounting < 0 ? -1 : load.accounting && !is_sliced(device));
}
int nvmlDeviceGetAccountingBufferSize(device_t *device, unsigned *size) {
  READ_LOAD;
  return number(size, load.accounting < 0 ? -1 : ACCOUNTED);
}
int nvmlDeviceGetAccountingPids(device_t *device, unsigned *count, unsigned *pids) {
  READ_LOAD;
  if (load.accounting <= 0) return NOT_SUPPORTED;
  if (*count < load.processes) return INSUFFICIENT_SIZE;
  *count = 0;
  for (int i = 0; i < load.processes; i++)
    if (load.process[i].kinds != GRAPHICS && load.process[i].start_us > 0)
      pids[(*count)++] = (unsigned)load.process[i].pid;
  return SUCCESS;
}
static int account(const load_t *load, unsigned pid, accounting_v2_t *stats) {
  if (load->accounting <= 0) return NOT_SUPPORTED;
  for (int i = 0; i < load->processes; i++) {
    const process_t *process = &load->process[i];
    if (process->pid != pid || process->kinds == GRAPHICS || process->start_us <= 0) continue;
    const int64_t samples = process->sample_count ? process->sample_count : 1;
    *stats = (accounting_v2_t){
        .pid = pid, .is_running = (unsigned)process->has_context,
        .gpu = (unsigned)(process->sum_util / 100 / samples), .max_memory = (unsigned long long)process->memory,
        .samples = (unsigned)process->sample_count, .sum_gpu = (unsigned long long)process->sum_util,
        .time_ms = process->has_context ? 0 : (unsigned long long)process->time_ms,
        .start_us = (unsigned long long)process->start_us};
    return SUCCESS;
  }
  return NOT_FOUND;
}
int nvmlDeviceGetAccountingStats_v2(device_t *device, accounting_v2_t *stats) {
  SINCE(590);
  READ_LOAD;
  return account(&load, stats->pid, stats);
}
int nvmlDeviceGetAccountingStats(device_t *device, unsigned pid, accounting_t *stats) {
  READ_LOAD;
  accounting_v2_t v2;
  const int code = account(&load, pid, &v2);
  if (!code) *stats = (accounting_t){v2.gpu, 0, v2.max_memory, v2.time_ms, v2.start_us, v2.is_running, {0}};
  return code;
}

/* -- slices (MIG) ------------------------------------------------------------------------------------------------- */

int nvmlDeviceGetMigDeviceHandleByIndex(device_t *device, unsigned index, device_t **handle) {
  READ_LOAD;
  if (!is_sliced(device) || slice >= 0 || index >= load.slices) return NOT_FOUND;
  *handle = &mig_slices[(device - devices) * MAX_SLICES + index];
  return SUCCESS;
}
int nvmlDeviceIsMigDeviceHandle(device_t *device, unsigned *is_slice) {
  READ_LOAD;
  *is_slice = slice >= 0;
  return SUCCESS;
}
int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device_t *device, device_t **whole) {
  READ_LOAD;
  if (slice < 0) return INVALID_ARGUMENT;
  *whole = &devices[(device - mig_slices) / MAX_SLICES];
  return SUCCESS;
}
int nvmlDeviceGetGpuInstanceId(device_t *device, unsigned *instance) {
  READ_LOAD;
  return number(instance, slice);
}
int nvmlDeviceGetComputeInstanceId(device_t *device, unsigned *instance) {
  READ_LOAD;
  return number(instance, slice < 0 ? -1 : 0);
}
int nvmlDeviceGetAttributes_v2(device_t *device, attributes_t *attributes) {
  READ_LOAD;
  if (slice < 0) return NOT_SUPPORTED;
  *attributes = (attributes_t){.sm = (unsigned)load.slice_sm[slice], .gpu_slices = 1, .compute_slices = 1};
  return SUCCESS;
}

/* -- conditions --------------------------------------------------------------------------------------------------- */

static int counter_ns(const load_t *load, int which, unsigned long long *to) {
  if (load->counter_ns[which] < 0) return NOT_SUPPORTED;
  state_t state;
  double ns = (double)load->counter_ns[which];
  if (!load_state(&state) && state.start_ns >= 0) {
    int64_t since_ns = clock_ns(CLOCK_MONOTONIC) - state.start_ns - load->at_ns;
    if (since_ns > LONGEST_STEP_NS) since_ns = LONGEST_STEP_NS;
    if (since_ns > 0) ns += (double)load->counter_ppm[which] * 1e-6 * (double)since_ns;
  }
  *to = (unsigned long long)ns;
  return SUCCESS;
}
int nvmlDeviceGetViolationStatus(device_t *device, unsigned policy, unsigned long long times[2]) {
  READ_LOAD;
  NEEDS(VIOLATIONS);
  OF_WHOLE_GPU;
  if (policy >= POLICIES) return INVALID_ARGUMENT;
  times[0] = (unsigned long long)(clock_ns(CLOCK_REALTIME) / 1000);
  return counter_ns(&load, (int)policy, &times[1]);
}

/* Answer a field that nvml.c does not know. */
static int load_field(device_t *device, field_t *f) {
  static const unsigned char policies[] = {0, 1, 2, 3, 4, 5, 10, 11};
  READ_LOAD;
  OF_WHOLE_GPU;
  const int is_policy = f->field >= 74 && f->field <= 81, is_reason = f->field >= 269 && f->field <= 271;
  if (is_policy || is_reason) {
    NEEDS(VIOLATION_FIELDS);
    if (is_reason && driver_major() < 560) return NOT_SUPPORTED;
    f->type = TYPE_UNSIGNED_LONG_LONG;
    return counter_ns(&load, is_policy ? policies[f->field - 74] : POLICIES + (int)f->field - 269, &f->value.q);
  }
  if (driver_major() < 550) return NOT_SUPPORTED;
  switch (f->field) {
    case 251: return number(&f->value.u, load.smoothing);
    case 275: return load.smoothing < 0 ? NOT_SUPPORTED : number(&f->value.u, load.floor_watts);
    default: return NOT_SUPPORTED;
  }
}

static int event_reasons(device_t *device, unsigned long long *reasons) {
  READ_LOAD;
  NEEDS(EVENT_REASONS);
  OF_WHOLE_GPU;
  *reasons = (unsigned long long)load.event_reasons;
  return SUCCESS;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(device_t *device, unsigned long long *reasons) {
  return event_reasons(device, reasons);
}
int nvmlDeviceGetCurrentClocksEventReasons(device_t *device, unsigned long long *reasons) {
  SINCE(535);
  return event_reasons(device, reasons);
}

static int clock_of(device_t *device, unsigned domain, int is_max, unsigned *mhz) {
  READ_LOAD;
  NEEDS(CLOCKS);
  OF_WHOLE_GPU;
  if (domain > 3) return INVALID_ARGUMENT;
  const int is_memory = domain == 2;
  return number(mhz, is_max ? (is_memory ? load.max_memory_mhz : load.max_sm_mhz)
                            : (is_memory ? load.memory_mhz : load.sm_mhz));
}
int nvmlDeviceGetClockInfo(device_t *device, unsigned domain, unsigned *mhz) { return clock_of(device, domain, 0, mhz); }
int nvmlDeviceGetMaxClockInfo(device_t *device, unsigned domain, unsigned *mhz) {
  return clock_of(device, domain, 1, mhz);
}

int nvmlDeviceGetTemperature(device_t *device, unsigned sensor, unsigned *celsius) {
  READ_LOAD;
  NEEDS(TEMPERATURE);
  return sensor ? INVALID_ARGUMENT : number(celsius, load.celsius);
}
int nvmlDeviceGetTemperatureV(device_t *device, temperature_t *temperature) {
  SINCE(570);
  unsigned celsius;
  const int code = nvmlDeviceGetTemperature(device, temperature->sensor, &celsius);
  if (!code) temperature->celsius = (int)celsius;
  return code;
}
int nvmlDeviceGetTemperatureThreshold(device_t *device, unsigned which, unsigned *celsius) {
  READ_LOAD;
  NEEDS(TEMPERATURE);
  return which == 1 ? number(celsius, load.slowdown_celsius) : NOT_SUPPORTED;
}

int nvmlDeviceGetTotalEccErrors(device_t *device, unsigned kind, unsigned since, unsigned long long *errors) {
  READ_LOAD;
  if (load.ecc_uncorrected < 0) return NOT_SUPPORTED;
  *errors = kind == 1 && since == 0 ? (unsigned long long)load.ecc_uncorrected : 0;
  return SUCCESS;
}
int nvmlDeviceWorkloadPowerProfileGetCurrentProfiles(device_t *device, unsigned *profiles) {
  SINCE(570);
  READ_LOAD;
  if (load.profiles < 0) return NOT_SUPPORTED;
  /* A version and three masks of 256 bits: those that can be set, those that were, and those that are enforced. */
  memset(profiles + 1, 0, 3 * 8 * sizeof *profiles);
  profiles[1] = 0xffffffffu;
  profiles[9] = profiles[17] = (unsigned)load.profiles;
  return SUCCESS;
}
int nvmlDeviceGetPowerManagementDefaultLimit(device_t *device, unsigned *milliwatts) {
  READ_LOAD;
  NEEDS(DEFAULT_LIMIT);
  return number(milliwatts, load.default_limit_mw);
}
int nvmlDeviceGetComputeMode(device_t *device, unsigned *mode) {
  READ_LOAD;
  NEEDS(COMPUTE_MODE);
  return number(mode, load.compute_mode);
}

#define PCIE_CALL(name, field)                             \
  int name(device_t *device, unsigned *to) {               \
    READ_LOAD;                                             \
    NEEDS(PCIE);                                           \
    return number(to, load.field);                         \
  }
PCIE_CALL(nvmlDeviceGetCurrPcieLinkGeneration, pcie_generation)
PCIE_CALL(nvmlDeviceGetMaxPcieLinkGeneration, max_pcie_generation)
PCIE_CALL(nvmlDeviceGetCurrPcieLinkWidth, pcie_width)
PCIE_CALL(nvmlDeviceGetMaxPcieLinkWidth, max_pcie_width)
