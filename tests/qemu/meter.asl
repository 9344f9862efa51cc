// A power meter of a node according to ACPI 6.5, section 10.4: 313 W, accurate to 95 %.
DefinitionBlock ("meter.aml", "SSDT", 2, "JWATCH", "METER", 1)
{
    Scope (\_SB)
    {
        Device (PMT0)
        {
            Name (_HID, "ACPI000D")
            Name (WATT, 313000)

            // Capabilities (measures only), unit (mW), input, accuracy (1/1000 %), sampling and averaging times (ms),
            // hysteresis, four limits that are not supported, and its model, serial number and OEM.
            Name (_PMC, Package (14)
            {
                One, Zero, One, 95000, 1000, 1000, 60000, 0xFFFFFFFF, Zero, Zero, Zero,
                "Meter", "313", "Joulewatch"
            })
            Method (_PMM, 0) { Return (WATT) }
            Method (_GAI, 0) { Return (1000) }
            Method (_PAI, 1) { Return (Zero) }
            // The measured devices; without this Linux creates no hwmon device.
            Method (_PMD, 0) { Return (Package (1) { \_SB.PCI0 }) }
        }
    }

    External (\_SB.PCI0, DeviceObj)
}
