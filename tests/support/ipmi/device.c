/*
 * Simulates /dev/ipmi0 without a kernel driver, loaded with LD_PRELOAD.
 *
 * FAKE_IPMI names a file with "current minimum maximum average state" (watts, and 1 while measuring). If the file is
 * missing, the BMC has no DCMI (C1h); if it contains "hang", the BMC never answers. Without FAKE_IPMI there is no
 * device. FAKE_IPMI_PATH sets another path of the device. The descriptor is an event counter, because it can be polled
 * like the real device and accepts the seek that Python makes on files opened for reading and writing.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include <linux/ioctl.h>
#include <linux/ipmi.h>

enum { VALUES = 5, MAX_FDS = 64 };
static int device_fds[MAX_FDS], device_count;
static unsigned char response[64];
static unsigned short response_bytes;
static unsigned char last_netfn, last_command;
static long last_id;

static int is_device(int fd)
{
    for (int i = 0; i < device_count; i++)
        if (device_fds[i] == fd)
            return 1;
    return 0;
}

static const char *device_path(void)
{
    const char *path = getenv("FAKE_IPMI_PATH");
    return path != NULL ? path : "/dev/ipmi0";
}

static int open_device(void)
{
    if (getenv("FAKE_IPMI") == NULL) {
        errno = ENOENT;
        return -1;
    }
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd >= 0 && device_count < MAX_FDS && !is_device(fd))
        device_fds[device_count++] = fd;
    return fd;
}

#define OPEN(name)                                                                                                     \
    int name(const char *path, int flags, ...)                                                                         \
    {                                                                                                                  \
        va_list arguments;                                                                                             \
        va_start(arguments, flags);                                                                                    \
        int mode = va_arg(arguments, int);                                                                             \
        va_end(arguments);                                                                                             \
        if (strcmp(path, device_path()) == 0)                                                                          \
            return open_device();                                                                                      \
        return ((int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #name))(path, flags, mode);                          \
    }
OPEN(open)
OPEN(open64)

static unsigned char *put(unsigned char *at, unsigned long value, int bytes)
{
    for (int i = 0; i < bytes; i++, value >>= 8)
        *at++ = value & 0xff;
    return at;
}

/* Return whether the BMC answers. */
static int run(const struct ipmi_req *request)
{
    unsigned int values[VALUES] = {0};
    char word[8] = "";
    int found = 0;

    last_netfn = request->msg.netfn;
    last_command = request->msg.cmd;
    last_id = request->msgid;
    memset(response, 0, sizeof response);
    response[0] = 0xc1;
    response_bytes = 1;
    FILE *file = fopen(getenv("FAKE_IPMI"), "r");
    if (file == NULL)
        return 1;
    while (found < VALUES && fscanf(file, "%u", &values[found]) == 1)
        found++;
    if (found == 0 && fscanf(file, "%7s", word) != 1)
        word[0] = 0;
    fclose(file);
    if (strcmp(word, "hang") == 0)
        return 0;
    if (last_netfn == 6 && last_command == 1) { /* Get Device ID */
        response[0] = 0;
        response[5] = 2;
        response_bytes = 16;
    }
    if (last_netfn == 0x2c && last_command == 2 && request->msg.data_len == 4 && request->msg.data[0] == 0xdc) {
        if (found < VALUES) {
            response[0] = 0xcb;
            return 1;
        }
        unsigned char *at = put(response, 0, 1);
        at = put(at, 0xdc, 1);
        for (int i = 0; i < VALUES - 1; i++)
            at = put(at, values[i], 2);
        at = put(at, (unsigned long)time(NULL), 4);
        at = put(at, 1000, 4);
        at = put(at, values[VALUES - 1] ? 0x40 : 0, 1);
        response_bytes = at - response;
    }
    return 1;
}

int ioctl(int fd, unsigned long request, ...)
{
    uint64_t one = 1;
    va_list arguments;
    va_start(arguments, request);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    if (!is_device(fd))
        return ((int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl"))(fd, request, argument);
    if (request == IPMICTL_SEND_COMMAND && run(argument))
        return write(fd, &one, sizeof one) == sizeof one ? 0 : -1;
    if (request == IPMICTL_RECEIVE_MSG_TRUNC || request == IPMICTL_RECEIVE_MSG) {
        struct ipmi_recv *receive = argument;
        struct ipmi_system_interface_addr *address = (void *)receive->addr;
        if (read(fd, &one, sizeof one) != sizeof one)
            return -1; /* EAGAIN: no answer yet, as with the driver */
        receive->recv_type = IPMI_RESPONSE_RECV_TYPE;
        receive->msgid = last_id;
        receive->msg.netfn = last_netfn | 1;
        receive->msg.cmd = last_command;
        if (address != NULL) {
            address->addr_type = IPMI_SYSTEM_INTERFACE_ADDR_TYPE;
            address->channel = IPMI_BMC_CHANNEL;
            address->lun = 0;
        }
        memcpy(receive->msg.data, response, response_bytes);
        receive->msg.data_len = response_bytes;
    }
    return 0;
}
