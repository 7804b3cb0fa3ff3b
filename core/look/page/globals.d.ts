// Put into the page by core/look/page.py.
declare const DATA: { dataset: any; events: any[] } | null;
