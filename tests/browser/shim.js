// Replaces react-custom-scrollbars-2. @grafana/ui imports the default of this CommonJS package through ESM interop,
// which returns an object instead of the component (React error 130). A screenshot needs no scroll bars.
import React from "react";

export const Scrollbars = React.forwardRef(({ children, style }, ref) =>
  React.createElement("div", { ref, style: { ...style, overflow: "hidden", height: "100%" } }, children)
);
export default Scrollbars;
