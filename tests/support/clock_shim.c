/*
 * Gives a program under LD_PRELOAD the wall clock and the host name of another machine.
 *
 * FAKE_CLOCK names a file of 8 bytes: nanoseconds (int64_t) that are added to the wall clock. It is mapped, so a test
 * sets the clock by writing to it. FAKE_NODENAME is the host name. Monotonic clocks are not changed.
 *
 * gcc -shared -fPIC -O2 -Wall -Wextra -Werror -o libclock_shim.so clock_shim.c -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *offset_ns;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static int (*real_clock_gettime)(clockid_t, struct timespec *);
static int (*real_uname)(struct utsname *);

static void begin(void)
{
	const char *path = getenv("FAKE_CLOCK");
	int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	void *page;

	real_clock_gettime = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
	real_uname = (int (*)(struct utsname *))dlsym(RTLD_NEXT, "uname");
	if (!path)
		return;
	page = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *offset_ns, PROT_READ, MAP_SHARED, fd, 0);
	if (page == MAP_FAILED) {
		perror(path);
		abort();
	}
	close(fd);
	offset_ns = page;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
	int failed;

	pthread_once(&once, begin);
	failed = real_clock_gettime(clock, now);
	if (!failed && offset_ns && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
		int64_t ns = (int64_t)now->tv_sec * 1000000000 + now->tv_nsec + *offset_ns;

		now->tv_sec = ns / 1000000000;
		now->tv_nsec = ns % 1000000000;
	}
	return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	struct timespec precise;

	(void)zone;
	clock_gettime(CLOCK_REALTIME, &precise);
	now->tv_sec = precise.tv_sec;
	now->tv_usec = precise.tv_nsec / 1000;
	return 0;
}

time_t time(time_t *result)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	if (result)
		*result = now.tv_sec;
	return now.tv_sec;
}

int uname(struct utsname *name)
{
	const char *nodename = getenv("FAKE_NODENAME");
	int failed;

	pthread_once(&once, begin);
	failed = real_uname(name);
	if (!failed && nodename)
		snprintf(name->nodename, sizeof name->nodename, "%s", nodename);
	return failed;
}
