/*
 * A module for OpenIPMI's ipmi_sim that adds DCMI's Get Power Reading.
 *
 * The init string names a file with "current minimum maximum average state": watts, and 1 while measuring. If the file
 * or one of the numbers is missing, the answer is CBh: no value now.
 */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <OpenIPMI/mcserv.h>
#include <OpenIPMI/msg.h>

enum { GROUP = 0xdc, GET_POWER_READING = 2, NO_VALUE = 0xcb, VALUES = 5, ANSWER_BYTES = 19, PERIOD_MS = 1000 };

static char values_path[1024];

static unsigned char *put(unsigned char *at, unsigned long value, int bytes)
{
    for (int i = 0; i < bytes; i++, value >>= 8)
        *at++ = value & 0xff;
    return at;
}

static void answer(lmc_data_t *mc, msg_t *request, unsigned char *response, unsigned int *length, void *data)
{
    unsigned int values[VALUES] = {0};
    int found = 0;

    (void)data;
    if (request->cmd != GET_POWER_READING) {
        handle_invalid_cmd(mc, response, length);
        return;
    }
    FILE *file = fopen(values_path, "r");
    if (file != NULL) {
        while (found < VALUES && fscanf(file, "%u", &values[found]) == 1)
            found++;
        fclose(file);
    }
    if (found < VALUES) {
        response[0] = NO_VALUE;
        *length = 1;
        return;
    }
    unsigned char *at = put(response, 0, 1);
    at = put(at, GROUP, 1);
    for (int i = 0; i < VALUES - 1; i++)
        at = put(at, values[i], 2);
    at = put(at, (unsigned long)time(NULL), 4);
    at = put(at, PERIOD_MS, 4);
    put(at, values[VALUES - 1] ? 0x40 : 0, 1);
    *length = ANSWER_BYTES;
}

int ipmi_sim_module_init(sys_data_t *sys, const char *init)
{
    (void)sys;
    snprintf(values_path, sizeof values_path, "%s", init);
    ipmi_emu_register_group_extension_handler(GROUP, answer, NULL);
    return 0;
}
