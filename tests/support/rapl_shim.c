/*
 * Simulates the kernel's side of two RAPL backends for a program under LD_PRELOAD: perf_event_open and the reads of its
 * descriptors, and pread of files that end in /cpu/N/msr.
 *
 * FAKE_RAPL names a file, read once, with the lines
 *   start NS                          monotonic time at which the registers start; 0: at the first read of a register
 *   square PERIOD_NS LOW HIGH         all powers alternate between LOW and HIGH times their watts (monotonic time)
 *   ripple PERIOD_NS LOW HIGH         the same as a sine
 *   refresh NS                        counters are refreshed at whole multiples of NS of monotonic time only
 *   follow PATH                       perf counters also count the energy of a track (see struct track)
 *   deny ERRNO                        every perf_event_open fails with this errno
 *   event TYPE CONFIG CPU WATTS       a perf counter
 *   fixed CPU REGISTER VALUE          a constant register (hexadecimal)
 *   count CPU REGISTER WATTS PER_JOULE START    a 32-bit counter register (REGISTER and START hexadecimal)
 *
 * gcc -shared -fPIC -O2 -Wall -Wextra -Werror -o librapl_shim.so rapl_shim.c -ldl -lm
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/perf_event.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 512, MOST_FDS = 4096, TRACK = 65536 };

/* A power that another process sets while it works: the last changes of the power, oldest first, in a ring. */
struct track {
	uint64_t changing; /* 1 from before the time of a change is taken until the change is stored */
	uint64_t changes;
	struct {
		uint64_t at_ns;
		double joules, watts; /* energy up to at_ns; power from then on */
	} ring[TRACK];
};

struct counter {
	int is_register, cpu, is_fixed;
	unsigned type;
	unsigned long long config, value; /* registers: config is the number, value the constant or the start */
	double watts, per_joule;
};

struct open_event {
	const struct counter *counter;
	uint64_t read_format, opened_ns;
};

static struct counter counters[MOST];
static int count_of_counters, denial;
static uint64_t start_ns;
static uint64_t period_ns = 1000000000;
static double low = 1, high = 1;
static int is_sine;
static uint64_t refresh_ns = 1;
static const volatile struct track *track;
static struct open_event events[MOST_FDS];
static pthread_once_t once = PTHREAD_ONCE_INIT;

static long (*real_syscall)(long, ...);
static ssize_t (*real_read)(int, void *, size_t);
static ssize_t (*real_pread)(int, void *, size_t, off_t);
static int (*real_close)(int);

static void begin(void)
{
	const char *path = getenv("FAKE_RAPL");
	char line[300], followed[256];
	FILE *file;

	real_syscall = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
	real_read = (ssize_t (*)(int, void *, size_t))dlsym(RTLD_NEXT, "read");
	real_pread = (ssize_t (*)(int, void *, size_t, off_t))dlsym(RTLD_NEXT, "pread");
	real_close = (int (*)(int))dlsym(RTLD_NEXT, "close");
	file = path ? fopen(path, "re") : NULL;
	if (!file)
		return;
	while (fgets(line, sizeof line, file) && count_of_counters < MOST) {
		struct counter *c = &counters[count_of_counters];
		unsigned long long ns;

		if (sscanf(line, "start %llu", &ns) == 1) {
			start_ns = ns;
		} else if (sscanf(line, "square %llu %lf %lf", &ns, &low, &high) == 3) {
			period_ns = ns;
		} else if (sscanf(line, "ripple %llu %lf %lf", &ns, &low, &high) == 3) {
			period_ns = ns;
			is_sine = 1;
		} else if (sscanf(line, "refresh %llu", &ns) == 1) {
			refresh_ns = ns;
		} else if (sscanf(line, "follow %255s", followed) == 1) {
			int fd = open(followed, O_RDONLY | O_CLOEXEC);

			track = mmap(NULL, sizeof *track, PROT_READ, MAP_SHARED, fd, 0);
			if (fd < 0 || track == MAP_FAILED)
				abort();
			real_close(fd);
		} else if (sscanf(line, "deny %d", &denial) == 1) {
			continue;
		} else if (sscanf(line, "event %u %llu %d %lf", &c->type, &c->config, &c->cpu, &c->watts) == 4) {
			c->per_joule = 4294967296.0;
			count_of_counters++;
		} else if (sscanf(line, "fixed %d %llx %llx", &c->cpu, &c->config, &c->value) == 3) {
			c->is_register = c->is_fixed = 1;
			count_of_counters++;
		} else if (sscanf(line, "count %d %llx %lf %lf %llx", &c->cpu, &c->config, &c->watts, &c->per_joule,
				  &c->value) == 5) {
			c->is_register = 1;
			count_of_counters++;
		} else {
			fprintf(stderr, "FAKE_RAPL: unknown line: %s", line);
			abort();
		}
	}
	fclose(file);
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* The time at full power that would use the same energy from the start of the clock on, in ns. */
static double full_power_ns(uint64_t at_ns)
{
	uint64_t half_ns = period_ns / 2, rest_ns = at_ns % period_ns;
	double in_round;

	if (is_sine) {
		double turn = 2 * M_PI / (double)period_ns;

		return (low + high) / 2 * (double)at_ns + (high - low) / 2 * (1 - cos(turn * (double)rest_ns)) / turn;
	}
	in_round = rest_ns < half_ns ? low * (double)rest_ns
					    : low * (double)half_ns + high * (double)(rest_ns - half_ns);

	return (double)(at_ns / period_ns) * (low * (double)half_ns + high * (double)(period_ns - half_ns)) + in_round;
}

static double tracked_joules(uint64_t at_ns)
{
	uint64_t i, changes = track ? track->changes : 0;

	for (i = changes; i > 0 && i + TRACK > changes; i--) {
		uint64_t since_ns = track->ring[(i - 1) % TRACK].at_ns;

		if (since_ns <= at_ns)
			return track->ring[(i - 1) % TRACK].joules +
			       track->ring[(i - 1) % TRACK].watts * (double)(at_ns - since_ns) / 1e9;
	}
	return 0;
}

static uint64_t counted(const struct counter *c, uint64_t from_ns)
{
	uint64_t at_ns = now_ns();
	double joules;

	/* A change that is not stored yet may be before now: its process may have lost the processor meanwhile. */
	while (track && track->changing) {
		sched_yield();
		at_ns = now_ns();
	}
	at_ns = at_ns / refresh_ns * refresh_ns;
	joules = (full_power_ns(at_ns) - full_power_ns(from_ns)) / 1e9 * c->watts;

	if (!c->is_register)
		joules += tracked_joules(at_ns) - tracked_joules(from_ns);
	return joules > 0 ? (uint64_t)(joules * c->per_joule) : 0;
}

static long open_event(const struct perf_event_attr *attr, int cpu, unsigned long flags)
{
	int i, fd;

	if (denial) {
		errno = denial;
		return -1;
	}
	if (attr->size < PERF_ATTR_SIZE_VER0) {
		errno = E2BIG;
		return -1;
	}
	if (attr->sample_period || cpu < 0) {
		errno = EINVAL;
		return -1;
	}
	for (i = 0; i < count_of_counters; i++) {
		const struct counter *c = &counters[i];

		if (c->is_register || c->type != attr->type || c->config != attr->config || c->cpu != cpu)
			continue;
		fd = eventfd(0, flags & PERF_FLAG_FD_CLOEXEC ? EFD_CLOEXEC : 0);
		if (fd >= 0 && fd < MOST_FDS) {
			events[fd].counter = c;
			events[fd].read_format = attr->read_format;
			events[fd].opened_ns = now_ns();
		}
		return fd;
	}
	errno = ENOENT;
	return -1;
}

long syscall(long number, ...)
{
	long a[6];
	va_list list;
	int i;

	pthread_once(&once, begin);
	va_start(list, number);
	for (i = 0; i < 6; i++)
		a[i] = va_arg(list, long);
	va_end(list);
	if (number == SYS_perf_event_open && (int)a[1] == -1 && (int)a[3] == -1)
		return open_event((const struct perf_event_attr *)a[0], (int)a[2], (unsigned long)a[4]);
	return real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

ssize_t read(int fd, void *buffer, size_t size)
{
	pthread_once(&once, begin);
	if (fd >= 0 && fd < MOST_FDS && events[fd].counter) {
		const struct open_event *event = &events[fd];
		uint64_t record[3];
		size_t n = 0;

		record[n++] = counted(event->counter, event->opened_ns);
		if (event->read_format & PERF_FORMAT_TOTAL_TIME_ENABLED)
			record[n++] = now_ns() - event->opened_ns;
		if (event->read_format & PERF_FORMAT_TOTAL_TIME_RUNNING)
			record[n++] = now_ns() - event->opened_ns;
		if (size < n * sizeof *record) {
			errno = ENOSPC;
			return -1;
		}
		memcpy(buffer, record, n * sizeof *record);
		return (ssize_t)(n * sizeof *record);
	}
	return real_read(fd, buffer, size);
}

static ssize_t read_register(int cpu, void *buffer, size_t size, unsigned long long number)
{
	uint64_t value;
	int i;

	if (size % 8) {
		errno = EINVAL;
		return -1;
	}
	for (i = 0; i < count_of_counters; i++) {
		const struct counter *c = &counters[i];

		if (!c->is_register || c->cpu != cpu || c->config != number)
			continue;
		if (!c->is_fixed && !start_ns)
			start_ns = now_ns();
		value = c->is_fixed ? c->value : (c->value + counted(c, start_ns)) & 0xffffffffu;
		memcpy(buffer, &value, 8);
		return 8;
	}
	errno = EIO;
	return -1;
}

ssize_t pread(int fd, void *buffer, size_t size, off_t offset)
{
	char link[64], path[4096], *end;
	ssize_t length;
	int cpu, used = 0;

	pthread_once(&once, begin);
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	length = readlink(link, path, sizeof path - 1);
	if (length > 0) {
		path[length] = 0;
		end = strstr(path, "/cpu/");
		if (end && sscanf(end, "/cpu/%d/msr%n", &cpu, &used) == 1 && used && !end[used])
			return read_register(cpu, buffer, size, (unsigned long long)offset);
	}
	return real_pread(fd, buffer, size, offset);
}

ssize_t pread64(int fd, void *buffer, size_t size, off64_t offset)
{
	return pread(fd, buffer, size, offset);
}

int close(int fd)
{
	pthread_once(&once, begin);
	if (fd >= 0 && fd < MOST_FDS)
		events[fd].counter = NULL;
	return real_close(fd);
}
