// SPDX-License-Identifier: GPL-2.0
/*
 * Two CPU sockets of known power behind the kernel's own interfaces: powercap zones like those of intel_rapl
 * (package-0 with a child core, package-1), and the perf events power/energy-pkg/ on CPU 0 and CPU 1.
 *
 * /sys/module/fakepower/parameters:
 *   milliwatts   of both sockets, such as 150000,80000; may be changed at any time
 *   energy_uj    the truth since the module was loaded, of both sockets
 *   headroom_uj  written: the counters of the zones wrap after this additional energy
 */
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/perf_event.h>
#include <linux/powercap.h>

enum { SOCKETS = 2 };

#define RANGE_UJ 65532610987ULL		/* 2^32 - 1 counts of 15.258 uJ, as on an EPYC */
#define MODULUS_UJ (RANGE_UJ + 15)	/* hardware wraps one count later */
#define LIMIT_UW 280000000ULL
#define ENERGY_PKG 2

struct socket_power {
	u64 milliwatts;
	u64 energy_pj;
	u64 offset_uj;
	struct powercap_zone zone;
};

static struct socket_power sockets[SOCKETS] = { { .milliwatts = 150000 }, { .milliwatts = 80000 } };
static struct powercap_zone core_zone;	/* a tenth of socket 0 */
static struct powercap_control_type *control;
static u64 settled_ns;
static DEFINE_SPINLOCK(lock);

/* Adds the energy since the last call; milliwatts times nanoseconds are picojoules. */
static u64 energy_uj(int number)
{
	unsigned long flags;
	u64 now_ns, energy_pj;
	int i;

	spin_lock_irqsave(&lock, flags);
	now_ns = ktime_get_ns();
	for (i = 0; i < SOCKETS; i++)
		sockets[i].energy_pj += (now_ns - settled_ns) * sockets[i].milliwatts;
	settled_ns = now_ns;
	energy_pj = sockets[number].energy_pj;
	spin_unlock_irqrestore(&lock, flags);
	return div_u64(energy_pj, 1000000);
}

/* -- parameters ---------------------------------------------------------------------------------------- */

static int set_milliwatts(const char *text, const struct kernel_param *param)
{
	u64 first, second;

	if (sscanf(text, "%llu,%llu", &first, &second) != SOCKETS)
		return -EINVAL;
	energy_uj(0);
	sockets[0].milliwatts = first;
	sockets[1].milliwatts = second;
	return 0;
}

static int get_milliwatts(char *text, const struct kernel_param *param)
{
	return sprintf(text, "%llu,%llu\n", sockets[0].milliwatts, sockets[1].milliwatts);
}

static int get_energy(char *text, const struct kernel_param *param)
{
	u64 first = energy_uj(0);

	return sprintf(text, "%llu %llu\n", first, energy_uj(1));
}

static int set_headroom(const char *text, const struct kernel_param *param)
{
	u64 headroom_uj;
	int i, failed = kstrtou64(text, 0, &headroom_uj);

	if (failed || headroom_uj > MODULUS_UJ)
		return -EINVAL;
	for (i = 0; i < SOCKETS; i++) {
		u64 position_uj;

		div64_u64_rem(energy_uj(i), MODULUS_UJ, &position_uj);
		sockets[i].offset_uj = 2 * MODULUS_UJ - headroom_uj - position_uj;
	}
	return 0;
}

static const struct kernel_param_ops milliwatts_ops = { .set = set_milliwatts, .get = get_milliwatts };
static const struct kernel_param_ops energy_ops = { .get = get_energy };
static const struct kernel_param_ops headroom_ops = { .set = set_headroom };
module_param_cb(milliwatts, &milliwatts_ops, NULL, 0644);
module_param_cb(energy_uj, &energy_ops, NULL, 0444);
module_param_cb(headroom_uj, &headroom_ops, NULL, 0200);

/* -- powercap ------------------------------------------------------------------------------------------ */

static int zone_energy(struct powercap_zone *zone, u64 *value)
{
	if (zone == &core_zone) {
		*value = div_u64(energy_uj(0), 10);
	} else {
		struct socket_power *at = container_of(zone, struct socket_power, zone);

		div64_u64_rem(at->offset_uj + energy_uj(at - sockets), MODULUS_UJ, value);
	}
	return 0;
}

static int zone_range(struct powercap_zone *zone, u64 *value)
{
	*value = RANGE_UJ;
	return 0;
}

static int zone_release(struct powercap_zone *zone)
{
	return 0;
}

static const struct powercap_zone_ops zone_ops = {
	.get_energy_uj = zone_energy,
	.get_max_energy_range_uj = zone_range,
	.release = zone_release,
};

static int get_limit(struct powercap_zone *zone, int number, u64 *value)
{
	*value = LIMIT_UW;
	return 0;
}

static int get_window(struct powercap_zone *zone, int number, u64 *value)
{
	*value = 1000000;
	return 0;
}

static int refuse(struct powercap_zone *zone, int number, u64 value)
{
	return -EPERM;
}

static const struct powercap_zone_constraint_ops limit_ops = {	/* the framework requires all four */
	.get_power_limit_uw = get_limit,
	.set_power_limit_uw = refuse,
	.get_time_window_us = get_window,
	.set_time_window_us = refuse,
};

static int add_zone(struct powercap_zone *zone, const char *name, struct powercap_zone *parent)
{
	return PTR_ERR_OR_ZERO(powercap_register_zone(zone, control, name, parent, &zone_ops, 1, &limit_ops));
}

/* -- perf ---------------------------------------------------------------------------------------------- */

static u64 perf_count(struct perf_event *event)	/* in 2^-32 J */
{
	u64 microjoules;
	u64 joules = div64_u64_rem(energy_uj(event->cpu), 1000000, &microjoules);

	return joules << 32 | div64_u64(microjoules << 32, 1000000);
}

static void perf_update(struct perf_event *event)
{
	u64 now = perf_count(event);

	local64_add(now - local64_xchg(&event->hw.prev_count, now), &event->count);
}

static int perf_init(struct perf_event *event)
{
	if (event->attr.type != event->pmu->type)
		return -ENOENT;
	if (event->attr.sample_period || event->cpu < 0 || event->cpu >= SOCKETS || event->attr.config != ENERGY_PKG)
		return -EINVAL;
	return 0;
}

static void perf_start(struct perf_event *event, int flags)
{
	local64_set(&event->hw.prev_count, perf_count(event));
	event->hw.state = 0;
}

static void perf_stop(struct perf_event *event, int flags)
{
	if (event->hw.state & PERF_HES_STOPPED)
		return;
	perf_update(event);
	event->hw.state |= PERF_HES_STOPPED;
}

static int perf_add(struct perf_event *event, int flags)
{
	event->hw.state = PERF_HES_STOPPED;
	if (flags & PERF_EF_START)
		perf_start(event, flags);
	return 0;
}

static ssize_t show_text(struct device *device, struct device_attribute *attribute, char *text)
{
	return sprintf(text, "%s\n", (char *)container_of(attribute, struct dev_ext_attribute, attr)->var);
}

#define TEXT_FILE(variable, name, text) \
	static struct dev_ext_attribute variable = { { { name, 0444 }, show_text }, text }
TEXT_FILE(event_file, "energy-pkg", "event=0x02");
TEXT_FILE(unit_file, "energy-pkg.unit", "Joules");
TEXT_FILE(scale_file, "energy-pkg.scale", "2.3283064365386962890625e-10");
TEXT_FILE(format_file, "event", "config:0-7");
TEXT_FILE(cpumask_file, "cpumask", "0-1");

static struct attribute *event_files[] = { &event_file.attr.attr, &unit_file.attr.attr, &scale_file.attr.attr, NULL };
static struct attribute *format_files[] = { &format_file.attr.attr, NULL };
static struct attribute *cpumask_files[] = { &cpumask_file.attr.attr, NULL };
static const struct attribute_group event_group = { .name = "events", .attrs = event_files };
static const struct attribute_group format_group = { .name = "format", .attrs = format_files };
static const struct attribute_group cpumask_group = { .attrs = cpumask_files };
static const struct attribute_group *groups[] = { &event_group, &format_group, &cpumask_group, NULL };

static struct pmu power_pmu = {
	.module = THIS_MODULE,
	.task_ctx_nr = perf_invalid_context,
	.attr_groups = groups,
	.event_init = perf_init,
	.add = perf_add,
	.del = perf_stop,
	.start = perf_start,
	.stop = perf_stop,
	.read = perf_update,
	.capabilities = PERF_PMU_CAP_NO_EXCLUDE | PERF_PMU_CAP_NO_INTERRUPT,
};

/* -- the module ---------------------------------------------------------------------------------------- */

static int __init fakepower_init(void)
{
	int failed;

	settled_ns = ktime_get_ns();
	control = powercap_register_control_type(NULL, "intel-rapl", NULL);
	if (IS_ERR(control))
		return PTR_ERR(control);
	failed = add_zone(&sockets[0].zone, "package-0", NULL);
	if (failed)
		goto no_zones;
	failed = add_zone(&core_zone, "core", &sockets[0].zone);
	if (failed)
		goto no_core;
	failed = add_zone(&sockets[1].zone, "package-1", NULL);
	if (failed)
		goto no_package;
	failed = perf_pmu_register(&power_pmu, "power", -1);
	if (!failed)
		return 0;
	powercap_unregister_zone(control, &sockets[1].zone);
no_package:
	powercap_unregister_zone(control, &core_zone);
no_core:
	powercap_unregister_zone(control, &sockets[0].zone);
no_zones:
	powercap_unregister_control_type(control);
	return failed;
}

static void __exit fakepower_exit(void)
{
	perf_pmu_unregister(&power_pmu);
	powercap_unregister_zone(control, &sockets[1].zone);
	powercap_unregister_zone(control, &core_zone);
	powercap_unregister_zone(control, &sockets[0].zone);
	powercap_unregister_control_type(control);
}

module_init(fakepower_init);
module_exit(fakepower_exit);
MODULE_DESCRIPTION("CPU sockets of known power, for tests");
MODULE_LICENSE("GPL");
