-- Quarto's typst wraps every embedded cell in a block, in which a figure cannot float to the top of a page.
local wrappers = { "cell", "cell-output", "cell-output-display", "quarto-embed-nb-cell" }

function Div(div)
  for _, class in ipairs(wrappers) do
    if quarto.doc.is_format("typst") and div.classes:includes(class) then
      return div.content
    end
  end
end
