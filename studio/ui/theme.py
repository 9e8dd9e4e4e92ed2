"""Gradio's theme as our tokens: its light and dark halves are the same variables, and tokens.css switches them."""

import gradio as gr

# Gradio writes these two into the page itself, before any style sheet is there.
BODY_DARK, BODY_LIGHT = "#0a0b0d", "#e9ebef"
_BOTH = {
    "body_text_color": "var(--st-text)",
    "body_text_color_subdued": "var(--st-text3)",
    "background_fill_primary": "var(--st-bg1)",
    "background_fill_secondary": "var(--st-bg2)",
    "border_color_primary": "var(--st-line2)",
    "border_color_accent": "var(--st-accent)",
    "color_accent_soft": "var(--st-accent-soft)",
    "link_text_color": "var(--st-accent-text)",
    "block_background_fill": "transparent",
    "block_border_width": "0px",
    "block_label_background_fill": "transparent",
    "block_label_text_color": "var(--st-text2)",
    "block_title_text_color": "var(--st-text2)",
    "block_title_text_weight": "500",
    "block_info_text_color": "var(--st-text3)",
    "block_shadow": "none",
    "panel_background_fill": "transparent",
    "input_background_fill": "var(--st-bg2)",
    "input_background_fill_focus": "var(--st-bg2)",
    "input_border_color": "var(--st-line2)",
    "input_border_color_hover": "var(--st-line3)",
    "input_border_color_focus": "var(--st-accent)",
    "input_border_width": "1px",
    "input_placeholder_color": "var(--st-text3)",
    "input_shadow": "none",
    "input_shadow_focus": "0 0 0 3px var(--st-accent-soft)",
    "checkbox_background_color": "var(--st-bg3)",
    "checkbox_background_color_selected": "var(--st-accent)",
    "checkbox_border_color": "var(--st-line3)",
    "checkbox_border_color_selected": "var(--st-accent)",
    "checkbox_border_color_focus": "var(--st-accent)",
    "checkbox_label_background_fill": "transparent",
    "checkbox_label_background_fill_hover": "transparent",
    "checkbox_label_background_fill_selected": "transparent",
    "checkbox_label_border_color": "transparent",
    "checkbox_label_text_color": "var(--st-text)",
    "slider_color": "var(--st-accent)",
    "button_primary_background_fill": "var(--st-accent)",
    "button_primary_text_color": "var(--st-on-accent)",
    "button_secondary_background_fill": "var(--st-bg3)",
    "button_secondary_text_color": "var(--st-text)",
    "error_background_fill": "var(--st-bad-soft)",
    "error_text_color": "var(--st-bad)",
    "code_background_fill": "var(--st-bg3)",
    "shadow_drop": "none",
    "shadow_drop_lg": "var(--st-shadow)",
}
_ONCE = {
    "block_padding": "0px",
    "block_label_padding": "0px",
    "block_title_padding": "0px",
    "block_title_background_fill": "transparent",
    "block_title_border_width": "0px",
    "block_title_text_size": "var(--st-12)",
    "block_radius": "0px",
    "container_radius": "0px",
    "input_radius": "var(--st-r2)",
    "input_padding": "7px 10px",
    "input_text_size": "var(--st-13)",
    "form_gap_width": "0px",
    "layout_gap": "0px",
    "checkbox_label_padding": "0px",
    "checkbox_border_radius": "4px",
}


def theme() -> gr.themes.Base:
    """Plain font names, so that nothing is asked of a font server."""
    made = gr.themes.Base(font=gr.themes.Font("Studio Sans"), font_mono=gr.themes.Font("Studio Mono"))
    known = vars(made)
    values = {"body_background_fill": BODY_LIGHT, "body_background_fill_dark": BODY_DARK, **_ONCE}
    for name, value in _BOTH.items():
        values[name] = value
        if f"{name}_dark" in known or hasattr(made, f"{name}_dark"):
            values[f"{name}_dark"] = value
    return made.set(**values)
