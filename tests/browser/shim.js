// @grafana/ui imports this CommonJS package's default through ESM interop, which yields an object instead of the
// component (React error 130). A plain scrolling box does for a screenshot.
import React from "react";

export const Scrollbars = React.forwardRef(({ children, style }, ref) =>
  React.createElement("div", { ref, style: { ...style, overflow: "hidden", height: "100%" } }, children)
);
export default Scrollbars;
